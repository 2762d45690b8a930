{{/* The Secret that holds the program's credentials. */}}
{{- define "ringspan.secret" -}}
{{- if eq .Values.secrets.source "existing" -}}
{{- .Values.secrets.existing.name -}}
{{- else -}}
{{- include "ringspan.fullname" . -}}
{{- end -}}
{{- end -}}

{{/* The Secret that holds the database's credentials. */}}
{{- define "ringspan.databaseSecret" -}}
{{- if eq .Values.database.mode "cloudnativepg" -}}
{{- printf "%s-app" (include "ringspan.cluster" .) -}}
{{- else if and (eq .Values.database.mode "external") .Values.database.external.existingSecret -}}
{{- .Values.database.external.existingSecret -}}
{{- else -}}
{{- include "ringspan.secret" . -}}
{{- end -}}
{{- end -}}

{{/* One variable from a Secret: list of variable, Secret, key. */}}
{{- define "ringspan.secretEnv" -}}
- name: {{ index . 0 }}
  valueFrom:
    secretKeyRef:
      name: {{ index . 1 }}
      key: {{ index . 2 }}
{{- end -}}

{{/*
How the program reaches its database: the same in nodes, init containers and migrations. A
password that is not in a URL goes by PGPASSWORD, so that its characters need no encoding.
*/}}
{{- define "ringspan.databaseEnv" -}}
{{- $db := .Values.database -}}
{{- $secret := include "ringspan.databaseSecret" . -}}
{{- $ext := $db.external -}}
{{- if eq $db.mode "cloudnativepg" }}
{{- include "ringspan.secretEnv" (list "RINGSPAN_DATABASE_URL" $secret "uri") }}
{{- else if eq $db.mode "dev" }}
- name: RINGSPAN_DATABASE_URL
  value: postgres://ringspan@{{ include "ringspan.postgres" . }}:5432/ringspan
{{ include "ringspan.secretEnv" (list "PGPASSWORD" $secret $ext.passwordKey) }}
{{- else if $ext.useUrl }}
{{- include "ringspan.secretEnv" (list "RINGSPAN_DATABASE_URL" $secret $ext.urlKey) }}
{{- if $ext.direct.enabled }}
{{ include "ringspan.secretEnv" (list "RINGSPAN_DATABASE_DIRECT_URL" $secret $ext.directUrlKey) }}
{{- end }}
{{- else }}
- name: RINGSPAN_DATABASE_URL
  value: postgres://{{ $ext.user }}@{{ $ext.host }}:{{ int $ext.port }}/{{ $ext.name }}
{{- if $ext.direct.enabled }}
- name: RINGSPAN_DATABASE_DIRECT_URL
  value: postgres://{{ $ext.user }}@{{ $ext.direct.host }}:{{ int $ext.direct.port }}/{{ $ext.name }}
{{- end }}
{{ include "ringspan.secretEnv" (list "PGPASSWORD" $secret $ext.passwordKey) }}
{{- end }}
- name: PGSSLMODE
  value: {{ ternary "disable" $db.sslMode (eq $db.mode "dev") }}
{{- if include "ringspan.databaseCa" . }}
- name: PGSSLROOTCERT
  value: /etc/ringspan/database-ca/{{ $db.ca.key }}
{{- end }}
{{- end -}}

{{/* "true" if an authority's certificate is mounted. */}}
{{- define "ringspan.databaseCa" -}}
{{- $db := .Values.database -}}
{{- if or $db.ca.secretName $db.ca.configMapName (eq $db.mode "cloudnativepg") }}true{{ end -}}
{{- end -}}

{{- define "ringspan.databaseVolumes" -}}
{{- if include "ringspan.databaseCa" . }}
{{- $ca := .Values.database.ca }}
- name: database-ca
  {{- if $ca.configMapName }}
  configMap:
    name: {{ $ca.configMapName }}
  {{- else }}
  secret:
    secretName: {{ $ca.secretName | default (printf "%s-ca" (include "ringspan.cluster" .)) }}
  {{- end }}
    items:
      - key: {{ $ca.key }}
        path: {{ $ca.key }}
{{- end }}
{{- end -}}

{{- define "ringspan.databaseMounts" -}}
{{- if include "ringspan.databaseCa" . }}
- name: database-ca
  mountPath: /etc/ringspan/database-ca
  readOnly: true
{{- end }}
{{- end -}}
