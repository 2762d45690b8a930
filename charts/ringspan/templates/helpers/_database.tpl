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

{{/* Files of a Secret: list of volume, Secret, keys. For the program's group alone. */}}
{{- define "ringspan.secretVolume" -}}
- name: {{ index . 0 }}
  secret:
    secretName: {{ index . 1 }}
    defaultMode: 0440
    items:
      {{- range index . 2 }}
      - key: {{ . }}
        path: {{ . }}
      {{- end }}
{{- end -}}

{{/*
A credential of the database: list of root, variable, variable of the file that holds it, key.
*/}}
{{- define "ringspan.databaseCredential" -}}
{{- $root := index . 0 -}}
{{- if $root.Values.secrets.mount -}}
- name: {{ index . 2 }}
  value: /etc/ringspan/database/{{ index . 3 }}
{{- else -}}
{{- include "ringspan.secretEnv" (list (index . 1) (include "ringspan.databaseSecret" $root) (index . 3)) -}}
{{- end -}}
{{- end -}}

{{- define "ringspan.databasePassword" -}}
{{- include "ringspan.databaseCredential" (list . "PGPASSWORD" "RINGSPAN_DATABASE_PASSWORD_FILE" .Values.database.external.passwordKey) -}}
{{- end -}}

{{/* Keys of the database's Secret that are used, as JSON. */}}
{{- define "ringspan.databaseKeys" -}}
{{- $ext := .Values.database.external -}}
{{- if eq .Values.database.mode "cloudnativepg" -}}
{{- toJson (list "uri") -}}
{{- else if or (eq .Values.database.mode "dev") (not $ext.useUrl) -}}
{{- toJson (list $ext.passwordKey) -}}
{{- else if $ext.direct.enabled -}}
{{- toJson (list $ext.urlKey $ext.directUrlKey) -}}
{{- else -}}
{{- toJson (list $ext.urlKey) -}}
{{- end -}}
{{- end -}}

{{/*
How the program reaches its database: the same in nodes, init containers and migrations. A
password that is not in a URL goes beside it, so that its characters need no encoding.
*/}}
{{- define "ringspan.databaseEnv" -}}
{{- $db := .Values.database -}}
{{- $ext := $db.external -}}
{{- if eq $db.mode "cloudnativepg" }}
{{- include "ringspan.databaseCredential" (list . "RINGSPAN_DATABASE_URL" "RINGSPAN_DATABASE_URL_FILE" "uri") }}
{{- else if eq $db.mode "dev" }}
- name: RINGSPAN_DATABASE_URL
  value: postgres://ringspan@{{ include "ringspan.postgres" . }}:5432/ringspan
{{ include "ringspan.databasePassword" . }}
{{- else if $ext.useUrl }}
{{- include "ringspan.databaseCredential" (list . "RINGSPAN_DATABASE_URL" "RINGSPAN_DATABASE_URL_FILE" $ext.urlKey) }}
{{- if $ext.direct.enabled }}
{{ include "ringspan.databaseCredential" (list . "RINGSPAN_DATABASE_DIRECT_URL" "RINGSPAN_DATABASE_DIRECT_URL_FILE" $ext.directUrlKey) }}
{{- end }}
{{- else }}
- name: RINGSPAN_DATABASE_URL
  value: postgres://{{ $ext.user }}@{{ $ext.host }}:{{ int $ext.port }}/{{ $ext.name }}
{{- if $ext.direct.enabled }}
- name: RINGSPAN_DATABASE_DIRECT_URL
  value: postgres://{{ $ext.user }}@{{ $ext.direct.host }}:{{ int $ext.direct.port }}/{{ $ext.name }}
{{- end }}
{{ include "ringspan.databasePassword" . }}
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
{{- if .Values.secrets.mount }}
{{ include "ringspan.secretVolume" (list "database" (include "ringspan.databaseSecret" .) (include "ringspan.databaseKeys" . | fromJsonArray)) }}
{{- end }}
{{- end -}}

{{- define "ringspan.databaseMounts" -}}
{{- if include "ringspan.databaseCa" . }}
- name: database-ca
  mountPath: /etc/ringspan/database-ca
  readOnly: true
{{- end }}
{{- if .Values.secrets.mount }}
- name: database
  mountPath: /etc/ringspan/database
  readOnly: true
{{- end }}
{{- end -}}
