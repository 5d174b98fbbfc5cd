// Makes src/generated/ of triton.binpb, which holds Triton's protocol as protoc compiles it, with ts-proto's plugin.
import { execFileSync } from "node:child_process";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";

import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import {
  CodeGeneratorRequestSchema,
  CodeGeneratorResponseSchema,
  FileDescriptorSetSchema,
} from "@bufbuild/protobuf/wkt";

const { file } = fromBinary(FileDescriptorSetSchema, readFileSync("triton.binpb"));
const request = create(CodeGeneratorRequestSchema, {
  protoFile: file,
  fileToGenerate: file.map(({ name }) => name),
  parameter: "outputServices=grpc-js,env=node,forceLong=bigint,importSuffix=.js,outputJsonMethods=false",
});
const answer = execFileSync(process.execPath, ["node_modules/ts-proto/protoc-gen-ts_proto"], {
  input: toBinary(CodeGeneratorRequestSchema, request),
});
const response = fromBinary(CodeGeneratorResponseSchema, answer);
if (response.error) throw new Error(response.error);
mkdirSync("src/generated", { recursive: true });
for (const { name, content } of response.file) writeFileSync(`src/generated/${name}`, content);
