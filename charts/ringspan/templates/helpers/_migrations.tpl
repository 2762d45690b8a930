{{/* "true" if all that a migration needs exists before the release's own objects do. */}}
{{- define "ringspan.migrationsReady" -}}
{{- $db := .Values.database -}}
{{- $existing := or (eq .Values.secrets.source "existing") $db.external.existingSecret -}}
{{- if or (and (eq $db.mode "external") $existing) (and (eq $db.mode "cloudnativepg") (not $db.cloudnativepg.create)) }}true{{ end -}}
{{- end -}}

{{/*
How the schema is brought up to date in this render: hook, job or external.

On upgrade a hook, so that a failed migration ends the upgrade before a pod changes. On install
a hook only where nothing of the release is needed; otherwise a Job beside the pods, which wait
for the schema. Never a post-install hook: under --wait Helm would wait for pods that wait for it.
*/}}
{{- define "ringspan.migrationsBy" -}}
{{- $strategy := .Values.migrations.strategy -}}
{{- if ne $strategy "auto" -}}
{{- $strategy -}}
{{- else if or .Release.IsUpgrade (include "ringspan.migrationsReady" .) -}}
hook
{{- else -}}
job
{{- end -}}
{{- end -}}

{{- define "ringspan.migrationsSpec" -}}
{{- $m := .Values.migrations -}}
backoffLimit: {{ int $m.backoffLimit }}
activeDeadlineSeconds: {{ int $m.activeDeadlineSeconds }}
{{- if not (kindIs "invalid" $m.ttlSecondsAfterFinished) }}
ttlSecondsAfterFinished: {{ int $m.ttlSecondsAfterFinished }}
{{- end }}
template:
  metadata:
    labels:
      {{- include "ringspan.labels" (list . "migrations") | nindent 6 }}
    {{- with $m.podAnnotations }}
    annotations:
      {{- toYaml . | nindent 6 }}
    {{- end }}
  spec:
    {{- include "ringspan.podBase" . | nindent 4 }}
    {{- with $m.serviceAccountName }}
    serviceAccountName: {{ . }}
    {{- end }}
    # A failed pod stays with its log; the Job starts another.
    restartPolicy: Never
    containers:
      - name: migrate
        {{- include "ringspan.containerBase" . | nindent 8 }}
        args: [migrate, run]
        env:
          {{- include "ringspan.databaseEnv" . | trim | nindent 10 }}
        resources:
          {{- toYaml $m.resources | nindent 10 }}
        {{- with include "ringspan.databaseMounts" . | trim }}
        volumeMounts:
          {{- . | nindent 10 }}
        {{- end }}
    {{- with include "ringspan.databaseVolumes" . | trim }}
    volumes:
      {{- . | nindent 6 }}
    {{- end }}
{{- end -}}
