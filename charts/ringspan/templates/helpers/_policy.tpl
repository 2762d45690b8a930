{{/* A NetworkPolicy peer: the pods of a component. List of root and component. */}}
{{- define "ringspan.peerOf" -}}
- podSelector:
    matchLabels:
      {{- include "ringspan.selector" . | nindent 6 }}
{{- end -}}

{{/* Look-ups of names, wherever the cluster's DNS is. */}}
{{- define "ringspan.dnsRule" -}}
- ports:
    - {port: 53, protocol: UDP}
    - {port: 53, protocol: TCP}
{{- end -}}

{{/* An egress rule to a target of values: dict with to and ports. */}}
{{- define "ringspan.egressRule" -}}
{{- if .ports -}}
- ports:
    {{- range .ports }}
    - {port: {{ int . }}, protocol: TCP}
    {{- end }}
  {{- with .to }}
  to:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}
{{- end -}}

{{/* Egress to the database. */}}
{{- define "ringspan.databaseRule" -}}
{{- if eq .Values.database.mode "dev" -}}
- ports:
    - {port: 5432, protocol: TCP}
  to:
    {{- include "ringspan.peerOf" (list . "dev-postgres") | nindent 4 }}
{{- else if and (eq .Values.database.mode "cloudnativepg") (empty .Values.networkPolicy.egress.database.to) -}}
- ports:
    - {port: 5432, protocol: TCP}
  to:
    - podSelector:
        matchLabels:
          cnpg.io/cluster: {{ include "ringspan.cluster" . }}
{{- else -}}
{{- include "ringspan.egressRule" .Values.networkPolicy.egress.database -}}
{{- end -}}
{{- end -}}
