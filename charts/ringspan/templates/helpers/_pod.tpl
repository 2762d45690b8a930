{{- define "ringspan.peerTlsSecret" -}}
{{- .Values.peer.mtls.existingSecret | default (include "ringspan.part" (list . "peer-tls")) -}}
{{- end -}}

{{/* A change of what the pods read at start replaces them. */}}
{{- define "ringspan.podAnnotations" -}}
checksum/config: {{ include "ringspan.toml" . | sha256sum }}
{{- if eq .Values.secrets.source "inline" }}
checksum/secret: {{ toJson .Values.secrets.inline | sha256sum }}
{{- end }}
kubectl.kubernetes.io/default-container: ringspan
{{- with .Values.rollout.manualToken }}
ringspan/rollout-token: {{ . | quote }}
{{- end }}
{{- with .Values.commonAnnotations }}
{{ toYaml . }}
{{- end }}
{{- with .Values.podAnnotations }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "ringspan.probe" -}}
{{- $probe := index . 1 -}}
httpGet:
  path: {{ index . 0 }}
  port: admin
periodSeconds: {{ int $probe.periodSeconds }}
failureThreshold: {{ int $probe.failureThreshold }}
timeoutSeconds: {{ int $probe.timeoutSeconds }}
{{- end -}}

{{- define "ringspan.spread" -}}
{{- $root := . -}}
{{- range .Values.topologySpread }}
- {{ toYaml . | nindent 2 | trim }}
  labelSelector:
    matchLabels:
      {{- include "ringspan.selector" (list $root "ring") | nindent 6 }}
  # Old and new pods of a rollout are spread each for themselves.
  matchLabelKeys: [controller-revision-hash]
{{- end }}
{{- end -}}

{{- define "ringspan.affinity" -}}
{{- if .Values.affinity -}}
{{- toYaml .Values.affinity -}}
{{- else if ne .Values.podAntiAffinity "none" -}}
podAntiAffinity:
{{- if eq .Values.podAntiAffinity "hard" }}
  requiredDuringSchedulingIgnoredDuringExecution:
    - topologyKey: kubernetes.io/hostname
      labelSelector:
        matchLabels:
          {{- include "ringspan.selector" (list . "ring") | nindent 10 }}
{{- else }}
  preferredDuringSchedulingIgnoredDuringExecution:
    - weight: 100
      podAffinityTerm:
        topologyKey: kubernetes.io/hostname
        labelSelector:
          matchLabels:
            {{- include "ringspan.selector" (list . "ring") | nindent 12 }}
{{- end }}
{{- end -}}
{{- end -}}

{{/* Blocks until the schema is there: the same image, no shell. */}}
{{- define "ringspan.schemaGate" -}}
- name: wait-for-schema
  {{- include "ringspan.containerBase" . | nindent 2 }}
  args: [migrate, wait, --timeout, {{ printf "%ds" (int .Values.migrations.waitTimeoutSeconds) }}]
  env:
    {{- include "ringspan.databaseEnv" . | trim | nindent 4 }}
  {{- with include "ringspan.databaseMounts" . | trim }}
  volumeMounts:
    {{- . | nindent 4 }}
  {{- end }}
  resources:
    {{- toYaml .Values.migrations.resources | nindent 4 }}
{{- end -}}

{{/* The program itself. */}}
{{- define "ringspan.container" -}}
{{- $v := .Values -}}
- name: ringspan
  {{- include "ringspan.containerBase" . | nindent 2 }}
  args: [serve]
  env:
    {{- include "ringspan.env" . | nindent 4 }}
  {{- with $v.extraEnvFrom }}
  envFrom:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  ports:
    - {name: http, containerPort: {{ int $v.ports.http }}, protocol: TCP}
    {{- if include "ringspan.hasPeers" . }}
    - {name: peer, containerPort: {{ int $v.peer.port }}, protocol: TCP}
    {{- end }}
    - {name: admin, containerPort: {{ int $v.ports.admin }}, protocol: TCP}
  startupProbe:
    {{- include "ringspan.probe" (list "/health/live" $v.probes.startup) | nindent 4 }}
  livenessProbe:
    {{- include "ringspan.probe" (list "/health/live" $v.probes.liveness) | nindent 4 }}
  readinessProbe:
    {{- include "ringspan.probe" (list "/health/ready" $v.probes.readiness) | nindent 4 }}
  {{- if $v.timing.preStopSleepSeconds }}
  lifecycle:
    preStop:
      sleep:
        seconds: {{ int $v.timing.preStopSleepSeconds }}
  {{- end }}
  resources:
    {{- toYaml $v.resources | nindent 4 }}
  volumeMounts:
    - {name: config, mountPath: /etc/ringspan/ringspan.toml, subPath: ringspan.toml, readOnly: true}
    {{- if eq $v.peer.auth "mtls" }}
    - {name: peer-tls, mountPath: /etc/ringspan/peer-tls, readOnly: true}
    {{- end }}
    {{- if include "ringspan.credentialKeys" . | fromJsonArray }}
    - {name: credentials, mountPath: /etc/ringspan/credentials, readOnly: true}
    {{- end }}
    {{- with include "ringspan.databaseMounts" . | trim }}
    {{- . | nindent 4 }}
    {{- end }}
    {{- with $v.extraVolumeMounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}

{{- define "ringspan.volumes" -}}
- name: config
  configMap:
    name: {{ include "ringspan.fullname" . }}
{{- if eq .Values.peer.auth "mtls" }}
- name: peer-tls
  secret:
    secretName: {{ include "ringspan.peerTlsSecret" . }}
{{- end }}
{{- with include "ringspan.credentialKeys" . | fromJsonArray }}
{{ include "ringspan.secretVolume" (list "credentials" (include "ringspan.secret" $) .) }}
{{- end }}
{{- with include "ringspan.databaseVolumes" . | trim }}
{{ . }}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}
