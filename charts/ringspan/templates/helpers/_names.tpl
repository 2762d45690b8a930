{{/* Name of the chart in labels. */}}
{{- define "ringspan.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{/*
Name of the release's objects. At most 52 characters: a StatefulSet's pods carry a label of its
name and a hash of up to eleven characters, and a label holds 63.
*/}}
{{- define "ringspan.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else -}}
{{- $name := include "ringspan.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Name of a part: list of the root and a suffix; at most 52 characters. */}}
{{- define "ringspan.part" -}}
{{- $root := index . 0 -}}
{{- $suffix := index . 1 -}}
{{- $room := int (sub 51 (len $suffix)) -}}
{{- printf "%s-%s" (include "ringspan.fullname" $root | trunc $room | trimSuffix "-") $suffix -}}
{{- end -}}

{{- define "ringspan.headless" -}}{{ include "ringspan.part" (list . "headless") }}{{- end -}}
{{- define "ringspan.admin" -}}{{ include "ringspan.part" (list . "admin") }}{{- end -}}
{{- define "ringspan.postgres" -}}{{ include "ringspan.part" (list . "postgres") }}{{- end -}}
{{- define "ringspan.sample" -}}{{ include "ringspan.part" (list . "sample") }}{{- end -}}
{{- define "ringspan.cluster" -}}
{{- .Values.database.cloudnativepg.clusterName | default (include "ringspan.part" (list . "db")) -}}
{{- end -}}

{{- define "ringspan.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "ringspan.fullname" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}

{{/* Domain of the pods: <pod>.<this>. */}}
{{- define "ringspan.podDomain" -}}
{{- printf "%s.%s.svc.%s" (include "ringspan.headless" .) .Release.Namespace .Values.clusterDomain -}}
{{- end -}}

{{/* What selects the pods of a component: list of the root and the component. */}}
{{- define "ringspan.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "ringspan.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* All labels of an object of a component. */}}
{{- define "ringspan.labels" -}}
{{- $root := index . 0 -}}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "ringspan.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: ringspan
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/*
Metadata of an object: dict of root, component, name; perhaps labels, annotations, namespace.
*/}}
{{- define "ringspan.metadata" -}}
metadata:
  name: {{ .name }}
  namespace: {{ .namespace | default .root.Release.Namespace }}
  labels:
    {{- include "ringspan.labels" (list .root .component) | nindent 4 }}
    {{- with .labels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with merge (dict) (.annotations | default dict) .root.Values.commonAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}

{{/* Reference of the program's image. */}}
{{- define "ringspan.image" -}}
{{- $image := .Values.image -}}
{{- $name := $image.repository -}}
{{- if $image.registry -}}{{- $name = printf "%s/%s" $image.registry $image.repository -}}{{- end -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $name $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $name ($image.tag | default .Chart.AppVersion) -}}
{{- end -}}
{{- end -}}
