"""Programs that use other people's libraries against a front, each in an environment that has its library.

They get the front's URL, a picture in base64 and a prompt, and write what they have got as JSON: pictures in base64.
"""

from __future__ import annotations

_HEAD = """
import base64, io, json, sys
url, one, prompt = sys.argv[1:]
"""

_LANGCHAIN = """
from langchain_openai import ChatOpenAI

model = ChatOpenAI(model="emoji", base_url=url + "/v1", api_key="none", max_retries=0)
painter = model.bind_tools([{"type": "image_generation", "quality": "low"}])

def picture(message):
    (call,) = [block for block in message.content if block.get("type") == "image_generation_call"]
    return call["result"]

whole = None
plain = painter.invoke(prompt)
for chunk in painter.stream(prompt):
    whole = chunk if whole is None else whole + chunk
parts = [{"type": "text", "text": prompt}, {"type": "image", "base64": one, "mime_type": "image/png"}]
edited = painter.invoke([{"role": "user", "content": parts}])
earlier = painter.invoke("a tree")
later = painter.invoke([("user", "a tree"), earlier, ("user", prompt)])
print(json.dumps([picture(each) for each in (plain, whole, edited, later)]))
"""

_PYDANTIC_AI = """
import asyncio
from openai import AsyncOpenAI
from pydantic_ai import Agent, BinaryContent, BinaryImage
from pydantic_ai.images.openai import OpenAIImageGenerationModel
from pydantic_ai.models.openai import OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

provider = OpenAIProvider(openai_client=AsyncOpenAI(base_url=url + "/v1", api_key="none", max_retries=0))
agent = Agent(OpenAIResponsesModel("gpt-5", provider=provider), output_type=BinaryImage)
painter = OpenAIImageGenerationModel("gpt-image-1", provider=provider)
file = base64.b64decode(one)

async def main():
    yield (await agent.run(prompt)).output.data
    async with agent.run_stream(prompt) as result:
        yield (await result.get_output()).data
    yield (await agent.run([prompt, BinaryContent(file, media_type="image/png")])).output.data
    yield (await painter.generate(prompt)).images[0].content.data
    yield (await painter.generate(prompt, images=[BinaryImage(file, media_type="image/png")])).images[0].content.data

async def written():
    print(json.dumps([base64.b64encode(each).decode() async for each in main()]))

asyncio.run(written())
"""

_WEBUIAPI_HEAD = """
from urllib.parse import urlsplit
import webuiapi
from PIL import Image

place = urlsplit(url)
api = webuiapi.WebUIApi(host=place.hostname, port=place.port)

def file_of(result):
    file = io.BytesIO()
    result.image.save(file, "png")
    return base64.b64encode(file.getvalue()).decode()
"""

_WEBUIAPI = """
start = Image.open(io.BytesIO(base64.b64decode(one)))
made = api.txt2img(prompt=prompt, seed=7)
edited = api.img2img(images=[start], prompt=prompt, denoising_strength=0.5)
print(json.dumps([file_of(made), file_of(edited)]))
"""

_WEBUIAPI_HELPERS = """
result = api.txt2img(prompt=prompt, n_iter=2)
api.util_wait_for_ready()
print(json.dumps({
    "size": [result.info["width"], result.info["height"]],
    "seeds": result.info["all_seeds"],
    "parameters": result.parameters["prompt"],
    "models": api.util_get_model_names(),
    "samplers": api.util_get_sampler_names(),
    "model": api.util_get_current_model(),
    "progress": api.get_progress()["progress"],
}))
"""

_LITELLM = """
import litellm

litellm.suppress_debug_info = True
front = {"model": "openai/emoji", "api_base": url + "/v1", "api_key": "none", "max_retries": 0}
messages = [{"role": "user", "content": prompt}]

def of_message(message):
    (image,) = message.images
    return image["image_url"]["url"].partition(",")[2]

made = litellm.image_generation(prompt, **front)
edited = litellm.image_edit(image=[io.BytesIO(base64.b64decode(one))], prompt=prompt, **front)
chat = litellm.completion(messages=messages, **front)
deltas = [chunk.choices[0].delta for chunk in litellm.completion(messages=messages, stream=True, **front)]
(delta,) = [each for each in deltas if getattr(each, "images", None)]
answer = litellm.responses(input=prompt, tools=[{"type": "image_generation"}], **front)
print(json.dumps([
    made.data[0].b64_json,
    edited.data[0].b64_json,
    of_message(chat.choices[0].message),
    of_message(delta),
    answer.output[0].result,
]))
"""

PROGRAMS = {
    "langchain": _HEAD + _LANGCHAIN,
    "pydantic_ai": _HEAD + _PYDANTIC_AI,
    "webuiapi": _HEAD + _WEBUIAPI_HEAD + _WEBUIAPI,
    "webuiapi_helpers": _HEAD + _WEBUIAPI_HEAD + _WEBUIAPI_HELPERS,
    "litellm": _HEAD + _LITELLM,
}
