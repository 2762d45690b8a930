{{/* Names that the chart gives, or that would undo what it gives. */}}
{{- define "ringspan.managedEnv" -}}
{{- $names := list "POD_NAME" "POD_UID" "POD_NAMESPACE" "NODE_NAME" "HOST_IP" "PGPASSWORD" "PGPASSFILE" "PGSSLMODE" "PGSSLROOTCERT" "OTEL_EXPORTER_OTLP_HEADERS" "OTEL_RESOURCE_ATTRIBUTES" "OTEL_TRACES_SAMPLER" "OTEL_TRACES_SAMPLER_ARG" "OTEL_SERVICE_NAME" -}}
{{- range list "CONFIG" "NODE_ID" "ADVERTISE" "HEADLESS_SERVICE" "CLUSTER_DOMAIN" "ZONE" "STATIC_MEMBERS" "LISTEN" "PEER_LISTEN" "ADMIN_LISTEN" "DATABASE_URL" "DATABASE_URL_FILE" "DATABASE_DIRECT_URL" "DATABASE_DIRECT_URL_FILE" "DATABASE_PASSWORD_FILE" "DATABASE_MAX_CONNECTIONS" "MIGRATE_ON_START" "HISTORY_KEY" "HISTORY_KEY_FILE" "ADMIN_TOKEN" "ADMIN_TOKEN_FILE" "PEER_TOKEN" "PEER_TOKEN_FILE" "PEER_CERT" "PEER_KEY" "PEER_CA" "PEER_ALLOW_PLAINTEXT" "HEARTBEAT_INTERVAL" "LEASE_TTL" "LEASE_MARGIN" "RING_POLL" "DRAIN_DWELL" "DRAIN_TIMEOUT" "DRAIN_CLEANUP" "OTLP_ENDPOINT" "UPSTREAM" -}}
{{- $names = append $names (printf "RINGSPAN_%s" .) -}}
{{- end -}}
{{- toJson $names -}}
{{- end -}}

{{/* A variable from the pod's own object: list of variable and field. */}}
{{- define "ringspan.fieldEnv" -}}
- name: {{ index . 0 }}
  valueFrom:
    fieldRef:
      fieldPath: {{ index . 1 }}
{{- end -}}

{{/* The exact addresses of all pods. */}}
{{- define "ringspan.staticMembers" -}}
{{- $members := list -}}
{{- $first := int .Values.ring.ordinalsStart -}}
{{- range $n := untilStep $first (int (add $first .Values.replicas)) 1 -}}
{{- $pod := printf "%s-%d" (include "ringspan.fullname" $) $n -}}
{{- $members = append $members (printf "%s=%s.%s:%d" $pod $pod (include "ringspan.podDomain" $) (int $.Values.peer.port)) -}}
{{- end -}}
{{- join "," $members -}}
{{- end -}}

{{/* A credential of nodes: list of root, variable, key. */}}
{{- define "ringspan.credential" -}}
{{- $root := index . 0 -}}
{{- if $root.Values.secrets.mount -}}
- name: {{ index . 1 }}_FILE
  value: /etc/ringspan/credentials/{{ index . 2 }}
{{- else -}}
{{- include "ringspan.secretEnv" (list (index . 1) (include "ringspan.secret" $root) (index . 2)) -}}
{{- end -}}
{{- end -}}

{{/* Keys of the Secret that nodes need, the database's aside, as JSON. */}}
{{- define "ringspan.nodeKeys" -}}
{{- $keys := list -}}
{{- if and (include "ringspan.hasPeers" .) (eq .Values.peer.auth "token") -}}{{- $keys = append $keys "peer-token" -}}{{- end -}}
{{- if .Values.admin.token -}}{{- $keys = append $keys "admin-token" -}}{{- end -}}
{{- if include "ringspan.keepsHistory" . -}}{{- $keys = append $keys "history-key" -}}{{- end -}}
{{- toJson $keys -}}
{{- end -}}

{{/* Those that nodes read from files, as JSON. */}}
{{- define "ringspan.credentialKeys" -}}
{{- if .Values.secrets.mount -}}{{ include "ringspan.nodeKeys" . }}{{- else -}}[]{{- end -}}
{{- end -}}

{{/* "true" if a route keeps conversations in the database, for which nodes need a key. */}}
{{- define "ringspan.keepsHistory" -}}
{{- range .Values.config.route -}}
{{- if eq (.continuity | default "") "database" }}true{{ end -}}
{{- end -}}
{{- end -}}

{{/* Variables of a node. What is later may use what is earlier by $(NAME). */}}
{{- define "ringspan.env" -}}
{{- $v := .Values -}}
{{ include "ringspan.fieldEnv" (list "POD_NAME" "metadata.name") }}
{{ include "ringspan.fieldEnv" (list "POD_NAMESPACE" "metadata.namespace") }}
{{ include "ringspan.fieldEnv" (list "POD_UID" "metadata.uid") }}
{{ include "ringspan.fieldEnv" (list "NODE_NAME" "spec.nodeName") }}
{{- if contains "$(HOST_IP)" $v.otel.endpoint }}
{{ include "ringspan.fieldEnv" (list "HOST_IP" "status.hostIP") }}
{{- end }}
- name: RINGSPAN_CONFIG
  value: /etc/ringspan/ringspan.toml
{{- if include "ringspan.hasPeers" . }}
- name: RINGSPAN_ADVERTISE
  value: {{ $v.ring.advertise | default (printf "$(POD_NAME).%s.$(POD_NAMESPACE).svc.%s:%d" (include "ringspan.headless" .) $v.clusterDomain (int $v.peer.port)) }}
{{- if eq $v.peer.auth "token" }}
{{ include "ringspan.credential" (list . "RINGSPAN_PEER_TOKEN" "peer-token") }}
{{- end }}
{{- if $v.ring.staticMembers }}
- name: RINGSPAN_STATIC_MEMBERS
  value: {{ include "ringspan.staticMembers" . }}
{{- end }}
{{- end }}
{{- if $v.admin.token }}
{{ include "ringspan.credential" (list . "RINGSPAN_ADMIN_TOKEN" "admin-token") }}
{{- end }}
{{- if include "ringspan.keepsHistory" . }}
{{ include "ringspan.credential" (list . "RINGSPAN_HISTORY_KEY" "history-key") }}
{{- end }}
{{- with $v.ring.zoneLabel }}
{{ include "ringspan.fieldEnv" (list "RINGSPAN_ZONE" (printf "metadata.labels['%s']" .)) }}
{{- end }}
{{ include "ringspan.databaseEnv" . }}
{{- $secret := include "ringspan.secret" . }}
{{- range $v.secrets.env }}
{{ include "ringspan.secretEnv" (list .name $secret .key) }}
{{- end }}
{{- include "ringspan.otelEnv" . }}
{{- with $v.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* OpenTelemetry; the program adds pod, namespace and node by itself. */}}
{{- define "ringspan.otelEnv" -}}
{{- $o := .Values.otel -}}
{{- if $o.endpoint }}
- name: RINGSPAN_OTLP_ENDPOINT
  value: {{ $o.endpoint }}
- name: OTEL_SERVICE_NAME
  value: {{ include "ringspan.name" . }}
- name: OTEL_RESOURCE_ATTRIBUTES
  {{- $own := dict "k8s.statefulset.name" (include "ringspan.fullname" .) "k8s.container.name" "ringspan" "service.namespace" .Release.Namespace "service.instance.id" "$(POD_UID)" "k8s.pod.uid" "$(POD_UID)" }}
  {{- $pairs := list }}
  {{- range $key, $value := merge (dict) $o.resourceAttributes $own }}
  {{- $pairs = append $pairs (printf "%s=%s" $key $value) }}
  {{- end }}
  value: {{ join "," $pairs | quote }}
{{- with $o.sampler }}
- name: OTEL_TRACES_SAMPLER
  value: {{ . | quote }}
{{- end }}
{{- with $o.samplerArg }}
- name: OTEL_TRACES_SAMPLER_ARG
  value: {{ . | quote }}
{{- end }}
{{- if $o.headersSecret.name }}
{{ include "ringspan.secretEnv" (list "OTEL_EXPORTER_OTLP_HEADERS" $o.headersSecret.name $o.headersSecret.key) }}
{{- end }}
{{- end }}
{{- end -}}
