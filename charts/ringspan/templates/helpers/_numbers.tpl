{{/* Milliseconds of a duration such as 1h30m or 500ms. */}}
{{- define "ringspan.ms" -}}
{{- $sum := 0 -}}
{{- $units := dict "ms" 1 "s" 1000 "m" 60000 "h" 3600000 "d" 86400000 -}}
{{- range regexFindAll "[0-9]+(ms|s|m|h|d)" (toString .) -1 -}}
{{- $unit := regexFind "[a-z]+$" . -}}
{{- $sum = add $sum (mul (int64 (trimSuffix $unit .)) (int64 (get $units $unit))) -}}
{{- end -}}
{{- $sum -}}
{{- end -}}

{{/* Whole seconds of a duration, rounded up. */}}
{{- define "ringspan.seconds" -}}
{{- div (add (int64 (include "ringspan.ms" .)) 999) 1000 -}}
{{- end -}}

{{/* What a drain may take, with five seconds to spare for the exit, in seconds. */}}
{{- define "ringspan.drainSeconds" -}}
{{- $t := .Values.timing -}}
{{- add (int64 $t.preStopSleepSeconds) (int64 (include "ringspan.seconds" $t.drainDwell)) (int64 (include "ringspan.seconds" $t.drainTimeout)) (int64 (include "ringspan.seconds" $t.drainCleanup)) 5 -}}
{{- end -}}

{{- define "ringspan.graceSeconds" -}}
{{- if kindIs "invalid" .Values.terminationGracePeriodSeconds -}}
{{- include "ringspan.drainSeconds" . -}}
{{- else -}}
{{- int64 .Values.terminationGracePeriodSeconds -}}
{{- end -}}
{{- end -}}

{{/* Margin of the lease in milliseconds, as the program computes it. */}}
{{- define "ringspan.marginMs" -}}
{{- if .Values.timing.leaseMargin -}}
{{- include "ringspan.ms" .Values.timing.leaseMargin -}}
{{- else -}}
{{- max 250 (div (int64 (include "ringspan.ms" .Values.timing.leaseTtl)) 5) -}}
{{- end -}}
{{- end -}}

{{- define "ringspan.minReplicas" -}}
{{- ternary .Values.autoscaling.minReplicas .Values.replicas .Values.autoscaling.enabled | int -}}
{{- end -}}

{{- define "ringspan.maxReplicas" -}}
{{- ternary .Values.autoscaling.maxReplicas .Values.replicas .Values.autoscaling.enabled | int -}}
{{- end -}}

{{/* Connections of one node: its pool, the lease's own, LISTEN. */}}
{{- define "ringspan.connectionsPerNode" -}}
{{- add (int .Values.database.pool.maxConnections) 2 -}}
{{- end -}}

{{/* "true" if nodes talk to each other. */}}
{{- define "ringspan.hasPeers" -}}
{{- if and .Values.ring.enabled .Values.peer.port }}true{{ end -}}
{{- end -}}

{{/* "true" if the budget's PodDisruptionBudget is rendered. */}}
{{- define "ringspan.hasPdb" -}}
{{- $enabled := toString .Values.pdb.enabled -}}
{{- if or (eq $enabled "true") (and (eq $enabled "auto") (gt (int (include "ringspan.minReplicas" .)) 1)) }}true{{ end -}}
{{- end -}}
