{{- define "taylorseer.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 46 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 46 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* The labels by which pods are found, of a context and a component: triton or front. */}}
{{- define "taylorseer.selector" -}}
{{- $root := first . -}}
app.kubernetes.io/name: {{ $root.Chart.Name }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ last . }}
{{- end -}}

{{- define "taylorseer.labels" -}}
{{- $root := first . -}}
{{ include "taylorseer.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version }}
{{- end -}}

{{- define "taylorseer.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}

{{/* A value as it was written: Helm reads every number as a float, and prints a million of them as 1e+06. */}}
{{- define "taylorseer.text" -}}
{{- if and (kindIs "float64" .) (eq (float64 (int64 .)) .) }}{{ int64 . }}{{ else }}{{ toString . }}{{ end -}}
{{- end -}}

{{/* The variable that overrides a parameter of the model, as plugin/repository.py reads it. */}}
{{- define "taylorseer.variable" -}}
{{ regexReplaceAll "\\W" (printf "TAYLORSEER_%s_%s" .model .parameter) "_" | upper }}
{{- end -}}

{{/* Of both the builder and the server: an engine is built for the settings that will load it. */}}
{{- define "taylorseer.env" -}}
- name: {{ include "taylorseer.variable" (dict "model" .Values.model "parameter" "engine") }}
  value: {{ .Values.engine.name | quote }}
{{- range $parameter, $value := .Values.parameters }}
- name: {{ include "taylorseer.variable" (dict "model" $.Values.model "parameter" $parameter) }}
  value: {{ include "taylorseer.text" $value | quote }}
{{- end }}
{{- with .Values.hubToken }}
{{- if .existingSecret }}
- name: HF_TOKEN
  valueFrom:
    secretKeyRef:
      name: {{ .existingSecret }}
      key: {{ .key }}
{{- end }}
{{- end }}
# For libraries that would write into the home folder, which is read-only.
- name: TRITON_CACHE_DIR
  value: /tmp/triton-kernels
- name: XDG_CACHE_HOME
  value: /tmp/cache
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "taylorseer.mounts" -}}
- name: engines
  mountPath: /engines
- name: weights
  mountPath: /weights
- name: tmp
  mountPath: /tmp
- name: shm
  mountPath: /dev/shm
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "taylorseer.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* What both kinds of pods have. */}}
{{- define "taylorseer.pod" -}}
automountServiceAccountToken: false
# `serve` kills Triton 10 seconds after its exit time-out.
terminationGracePeriodSeconds: {{ add .Values.drainSeconds .Values.exitTimeoutSeconds 20 }}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* A pod leaves the load balancers before it refuses requests. */}}
{{- define "taylorseer.drain" -}}
preStop:
  exec:
    command: [sleep, {{ include "taylorseer.text" .Values.drainSeconds | quote }}]
{{- end -}}

{{/* The resources of the builder and the server, with the one GPU. */}}
{{- define "taylorseer.resources" -}}
{{- $resources := deepCopy .Values.resources -}}
{{- if .Values.gpu.enabled -}}
{{- $limits := merge (dict .Values.gpu.resource (toString (int64 .Values.gpu.count))) (get $resources "limits" | default dict) -}}
{{- $_ := set $resources "limits" $limits -}}
{{- end -}}
{{ toYaml $resources }}
{{- end -}}

{{/* What a probe does: a picture of one step, or a question to Triton. */}}
{{- define "taylorseer.probe" -}}
{{- if .Values.probes.inference -}}
exec:
  command:
    - triton-taylorseer
    - health
    - --model={{ .Values.model }}
    - --timeout={{ include "taylorseer.text" .Values.probes.timeoutSeconds }}
{{- else -}}
httpGet:
  path: /v2/health/ready
  port: http
{{- end }}
# Above the command's own time-out, so that its message is printed.
timeoutSeconds: {{ add .Values.probes.timeoutSeconds 5 }}
{{- end -}}

{{/* The calls that a proxy forwards: none that loads or unloads models, or registers shared memory. */}}
{{- define "taylorseer.methods" -}}
[ModelInfer, ModelStreamInfer, ModelMetadata, ModelReady, ServerMetadata, ServerLive, ServerReady]
{{- end -}}
