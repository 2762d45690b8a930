{{/* A scalar as TOML has it. Helm holds every number as a float; the program has whole ones. */}}
{{- define "ringspan.tomlScalar" -}}
{{- if or (kindIs "float64" .) (kindIs "int64" .) (kindIs "int" .) -}}
{{- int64 . -}}
{{- else -}}
{{- toJson . -}}
{{- end -}}
{{- end -}}

{{/* The program's configuration file. */}}
{{- define "ringspan.toml" -}}
{{- $v := .Values -}}
{{- $t := $v.timing -}}
{{- $ports := $v.ports -}}
listen = "0.0.0.0:{{ int $ports.http }}"
admin_listen = "0.0.0.0:{{ int $ports.admin }}"
{{- if include "ringspan.hasPeers" . }}
peer_listen = "0.0.0.0:{{ int $v.peer.port }}"
{{- else }}
peer_listen = "127.0.0.1:0"
{{- end }}
{{- if eq $v.peer.auth "none" }}
peer_allow_plaintext = {{ $v.peer.allowPlaintext }}
{{- else if eq $v.peer.auth "mtls" }}
peer_cert = "/etc/ringspan/peer-tls/tls.crt"
peer_key = "/etc/ringspan/peer-tls/tls.key"
peer_ca = "/etc/ringspan/peer-tls/ca.crt"
{{- end }}
cluster_domain = {{ $v.clusterDomain | toJson }}
database_max_connections = {{ int $v.database.pool.maxConnections }}
heartbeat_interval = {{ $t.heartbeatInterval | toJson }}
lease_ttl = {{ $t.leaseTtl | toJson }}
{{- with $t.leaseMargin }}
lease_margin = {{ . | toJson }}
{{- end }}
ring_poll = {{ $t.ringPoll | toJson }}
drain_dwell = {{ $t.drainDwell | toJson }}
drain_timeout = {{ $t.drainTimeout | toJson }}
drain_cleanup = {{ $t.drainCleanup | toJson }}
{{- range $key, $value := omit $v.config "upstream" "route" "auth" }}
{{ $key }} = {{ include "ringspan.tomlScalar" $value }}
{{- end }}

{{ pick $v.config "upstream" "route" "auth" | toToml }}
{{- end -}}
