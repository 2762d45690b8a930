{{/*
What a schema cannot say. All faults are found before rendering fails, one line for each: the
key, what is wrong, what would be right.
*/}}
{{- define "ringspan.guards" -}}
{{- $faults := dict "list" list -}}
{{- include "ringspan.guardRing" (list . $faults) -}}
{{- include "ringspan.guardTiming" (list . $faults) -}}
{{- include "ringspan.guardDatabase" (list . $faults) -}}
{{- include "ringspan.guardSecrets" (list . $faults) -}}
{{- include "ringspan.guardMigrations" (list . $faults) -}}
{{- include "ringspan.guardNetwork" (list . $faults) -}}
{{- include "ringspan.guardImage" (list . $faults) -}}
{{- with $faults.list -}}
{{- fail (printf "\n\nThis release would not work:\n  - %s\n" (join "\n  - " .)) -}}
{{- end -}}
{{- end -}}

{{/* Adds a fault: list of the faults and the text. */}}
{{- define "ringspan.fault" -}}
{{- $faults := index . 0 -}}
{{- $_ := set $faults "list" (append $faults.list (index . 1)) -}}
{{- end -}}

{{- define "ringspan.guardRing" -}}
{{- $root := index . 0 -}}
{{- $faults := index . 1 -}}
{{- $v := $root.Values -}}
{{- $max := int (include "ringspan.maxReplicas" $root) -}}
{{- if gt $max 1 -}}
{{- if not $v.ring.enabled -}}
{{- include "ringspan.fault" (list $faults (printf "ring.enabled: false, but up to %d replicas; they would each believe to be alone. Set replicas: 1 or ring.enabled: true" $max)) -}}
{{- end -}}
{{- if not $v.peer.port -}}
{{- include "ringspan.fault" (list $faults (printf "peer.port: none, but up to %d replicas need it to reach each other. Set a port or replicas: 1" $max)) -}}
{{- end -}}
{{- if and (eq $v.peer.auth "none") (not $v.peer.allowPlaintext) -}}
{{- include "ringspan.fault" (list $faults "peer.auth: none, but more than one replica; whoever reaches the peer port could act as a node. Set peer.auth to token or mtls, or acknowledge it by peer.allowPlaintext: true") -}}
{{- end -}}
{{- else if and $v.ring.enabled $v.peer.port (eq $v.peer.auth "none") (not $v.peer.allowPlaintext) -}}
{{- include "ringspan.fault" (list $faults "peer.auth: none opens the peer port to anybody; acknowledge it by peer.allowPlaintext: true, or set ring.enabled: false for a single node") -}}
{{- end -}}
{{- if and $v.peer.allowPlaintext (ne $v.peer.auth "none") -}}
{{- include "ringspan.fault" (list $faults (printf "peer.allowPlaintext: true contradicts peer.auth: %s; set one of them back" $v.peer.auth)) -}}
{{- end -}}
{{- if and $v.ring.staticMembers $v.autoscaling.enabled -}}
{{- include "ringspan.fault" (list $faults "ring.staticMembers: a static list cannot follow autoscaling; disable one of them") -}}
{{- end -}}
{{- if and $v.ring.staticMembers $v.ring.advertise -}}
{{- include "ringspan.fault" (list $faults "ring.staticMembers: the list holds the pods' own names and would contradict ring.advertise; disable one of them") -}}
{{- end -}}
{{- if gt (int $v.autoscaling.minReplicas) (int $v.autoscaling.maxReplicas) -}}
{{- include "ringspan.fault" (list $faults "autoscaling.minReplicas: more than maxReplicas") -}}
{{- end -}}
{{- if and $v.autoscaling.enabled (kindIs "invalid" $v.autoscaling.targetCPUUtilizationPercentage) (kindIs "invalid" $v.autoscaling.targetSessions) -}}
{{- include "ringspan.fault" (list $faults "autoscaling: nothing to scale by; set targetCPUUtilizationPercentage or targetSessions") -}}
{{- end -}}
{{- $noMax := kindIs "invalid" $v.pdb.maxUnavailable -}}
{{- $noMin := kindIs "invalid" $v.pdb.minAvailable -}}
{{- if not (or $noMax $noMin) -}}
{{- include "ringspan.fault" (list $faults "pdb: only one of maxUnavailable and minAvailable; set the other to null") -}}
{{- end -}}
{{- if and (include "ringspan.hasPdb" $root) $noMax $noMin -}}
{{- include "ringspan.fault" (list $faults "pdb: maxUnavailable and minAvailable are both null, which limits nothing; set one of them, or pdb.enabled: false") -}}
{{- end -}}
{{- $mtls := $v.peer.mtls -}}
{{- if and (eq $v.peer.auth "mtls") (not $mtls.existingSecret) (not $mtls.certManager.enabled) -}}
{{- include "ringspan.fault" (list $faults "peer.mtls: no certificate; name peer.mtls.existingSecret or enable peer.mtls.certManager") -}}
{{- end -}}
{{- if and $mtls.existingSecret $mtls.certManager.enabled -}}
{{- include "ringspan.fault" (list $faults "peer.mtls: either existingSecret or certManager, not both") -}}
{{- end -}}
{{- end -}}

{{- define "ringspan.guardTiming" -}}
{{- $root := index . 0 -}}
{{- $faults := index . 1 -}}
{{- $v := $root.Values -}}
{{- $need := int (include "ringspan.drainSeconds" $root) -}}
{{- $grace := int (include "ringspan.graceSeconds" $root) -}}
{{- if lt $grace $need -}}
{{- include "ringspan.fault" (list $faults (printf "terminationGracePeriodSeconds: %d cuts the drain short; preStop + dwell + timeout + cleanup + 5 is %d. Give at least that, or null" $grace $need)) -}}
{{- end -}}
{{- $ttl := int64 (include "ringspan.ms" $v.timing.leaseTtl) -}}
{{- $margin := int64 (include "ringspan.marginMs" $root) -}}
{{- $beat := int64 (include "ringspan.ms" $v.timing.heartbeatInterval) -}}
{{- if gt (mul 2 $margin) $ttl -}}
{{- include "ringspan.fault" (list $faults (printf "timing.leaseMargin: %d ms is more than half of leaseTtl (%s)" $margin $v.timing.leaseTtl)) -}}
{{- else if lt (mul 8 $margin) $ttl -}}
{{- include "ringspan.fault" (list $faults (printf "timing.leaseMargin: %d ms is less than an eighth of leaseTtl (%s)" $margin $v.timing.leaseTtl)) -}}
{{- else if gt (mul 3 $beat) (sub $ttl $margin) -}}
{{- include "ringspan.fault" (list $faults (printf "timing.heartbeatInterval: three heartbeats (3 × %s) do not fit into leaseTtl less its margin (%s, %d ms); beat more often or lengthen leaseTtl" $v.timing.heartbeatInterval $v.timing.leaseTtl $margin)) -}}
{{- end -}}
{{- if and $v.autoscaling.enabled (gt $grace 1800) -}}
{{- include "ringspan.fault" (list $faults (printf "autoscaling: scaling down removes one node for each drain, and an autoscaler's period is at most 1800 s, but a drain may take %d s; shorten timing.drainTimeout" $grace)) -}}
{{- end -}}
{{- $turn := get $v.config "turn_idle_timeout" | default "300s" -}}
{{- if lt (int64 (include "ringspan.ms" $v.sessionIdleLimit)) (int64 (include "ringspan.ms" $turn)) -}}
{{- include "ringspan.fault" (list $faults (printf "sessionIdleLimit: %s is shorter than turn_idle_timeout (%s), so proxies would cut turns that think" $v.sessionIdleLimit $turn)) -}}
{{- end -}}
{{- end -}}

{{- define "ringspan.guardDatabase" -}}
{{- $root := index . 0 -}}
{{- $faults := index . 1 -}}
{{- $v := $root.Values -}}
{{- $db := $v.database -}}
{{- $max := int (include "ringspan.maxReplicas" $root) -}}
{{- $per := int (include "ringspan.connectionsPerNode" $root) -}}
{{- $pool := $db.pool -}}
{{- if not (kindIs "invalid" $pool.budget) -}}
{{- $need := add (mul $max $per) (int $pool.reserve) -}}
{{- if gt $need (int64 $pool.budget) -}}
{{- include "ringspan.fault" (list $faults (printf "database.pool.budget: %d connections are too few; %d nodes × (maxConnections %d + 2) + reserve %d is %d" (int $pool.budget) $max (int $pool.maxConnections) (int $pool.reserve) $need)) -}}
{{- end -}}
{{- end -}}
{{- if and (eq $db.mode "dev") (not $db.dev.acknowledgeDataLoss) -}}
{{- include "ringspan.fault" (list $faults "database.mode: dev loses its data with its pod; acknowledge it by database.dev.acknowledgeDataLoss: true, or choose external or cloudnativepg") -}}
{{- end -}}
{{- if and (eq $db.mode "external") (not $db.external.useUrl) -}}
{{- if not $db.external.host -}}
{{- include "ringspan.fault" (list $faults "database.external.host: missing; give it, or useUrl: true with the Secret's key database-url") -}}
{{- end -}}
{{- if and $db.external.direct.enabled (not $db.external.direct.host) -}}
{{- include "ringspan.fault" (list $faults "database.external.direct.host: missing; it is the server behind the pooler") -}}
{{- end -}}
{{- end -}}
{{- if and $db.ca.secretName $db.ca.configMapName -}}
{{- include "ringspan.fault" (list $faults "database.ca: either secretName or configMapName, not both") -}}
{{- end -}}
{{- if and (eq $db.mode "cloudnativepg") (not $db.cloudnativepg.create) (not $db.cloudnativepg.clusterName) -}}
{{- include "ringspan.fault" (list $faults "database.cloudnativepg.clusterName: missing; name the Cluster, or create: true") -}}
{{- end -}}
{{- end -}}

{{- define "ringspan.guardSecrets" -}}
{{- $root := index . 0 -}}
{{- $faults := index . 1 -}}
{{- $v := $root.Values -}}
{{- $s := $v.secrets -}}
{{- $ownDb := and (eq $v.database.mode "external") (empty $v.database.external.existingSecret) -}}
{{- if eq $s.source "inline" -}}
{{- /* One token, or the two of a rotation, as the program separates and judges them. */ -}}
{{- if and (include "ringspan.hasPeers" $root) (eq $v.peer.auth "token") -}}
{{- $tokens := list -}}
{{- $short := false -}}
{{- range compact (splitList "," $s.inline.peerToken) -}}
{{- $tokens = append $tokens . -}}
{{- if lt (len .) 16 -}}{{- $short = true -}}{{- end -}}
{{- end -}}
{{- if or $short (empty $tokens) (gt (len $tokens) 2) -}}
{{- include "ringspan.fault" (list $faults "secrets.inline.peerToken: at least 16 characters (openssl rand -hex 32); two such tokens, separated by a comma, while one replaces the other") -}}
{{- end -}}
{{- end -}}
{{- if and $v.admin.token (lt (len $s.inline.adminToken) 16) -}}
{{- include "ringspan.fault" (list $faults "secrets.inline.adminToken: at least 16 characters (openssl rand -hex 32)") -}}
{{- end -}}
{{- /* 32 bytes are 43 characters, the last of which has two bits to spare, and one of padding. */ -}}
{{- $key := "[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=" -}}
{{- $keys := regexFindAll $key $s.inline.historyKey -1 -}}
{{- $apart := regexMatch (printf "^%s([,\\s]+%s){0,7}$" $key $key) (trim $s.inline.historyKey) -}}
{{- if and (include "ringspan.keepsHistory" $root) (or (not $apart) (ne (len $keys) (len (uniq $keys)))) -}}
{{- include "ringspan.fault" (list $faults "secrets.inline.historyKey: a route has continuity database; 32 bytes in padded base64 (openssl rand -base64 32), or up to 8 such keys that differ, separated by commas") -}}
{{- end -}}
{{- if and $ownDb $v.database.external.useUrl (not (regexMatch "^postgres(ql)?://.+" $s.inline.databaseUrl)) -}}
{{- include "ringspan.fault" (list $faults "secrets.inline.databaseUrl: a URL postgres://…") -}}
{{- end -}}
{{- if and $ownDb $v.database.external.useUrl $v.database.external.direct.enabled (not (regexMatch "^postgres(ql)?://.+" $s.inline.databaseDirectUrl)) -}}
{{- include "ringspan.fault" (list $faults "secrets.inline.databaseDirectUrl: a URL postgres://… that bypasses the pooler") -}}
{{- end -}}
{{- if and (or (eq $v.database.mode "dev") (and $ownDb (not $v.database.external.useUrl))) (lt (len $s.inline.databasePassword) 8) -}}
{{- include "ringspan.fault" (list $faults "secrets.inline.databasePassword: at least 8 characters") -}}
{{- end -}}
{{- range $s.env -}}
{{- if not (hasKey $s.inline.extra .key) -}}
{{- include "ringspan.fault" (list $faults (printf "secrets.inline.extra: the key %s, which secrets.env wants, is missing" .key)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and (eq $s.source "externalSecrets") (not $s.externalSecrets.storeName) -}}
{{- include "ringspan.fault" (list $faults "secrets.externalSecrets.storeName: missing; name the SecretStore") -}}
{{- end -}}
{{- if and (eq $s.source "externalSecrets") (empty $s.externalSecrets.refs) (empty $s.externalSecrets.dataFrom) -}}
{{- include "ringspan.fault" (list $faults "secrets.externalSecrets: nothing to fetch; give refs or dataFrom") -}}
{{- end -}}
{{- $managed := include "ringspan.managedEnv" $root | fromJsonArray -}}
{{- range concat $v.extraEnv $s.env -}}
{{- if has .name $managed -}}
{{- include "ringspan.fault" (list $faults (printf "extraEnv, secrets.env: %s is set by the chart and cannot be replaced; use the value that it comes from" .name)) -}}
{{- end -}}
{{- end -}}
{{- if not $v.allowLiteralSecretsInConfig -}}
{{- range $where, $what := dict "config" $v.config "extraEnv" $v.extraEnv -}}
{{- $text := toJson $what -}}
{{- if regexMatch "\"literal\\." $text -}}
{{- include "ringspan.fault" (list $faults (printf "%s: holds a literal.… reference; put the credential into a Secret and name it by secrets.env, or set allowLiteralSecretsInConfig: true" $where)) -}}
{{- end -}}
{{- if regexMatch "://[^/\"@]*:[^/\"@]+@" $text -}}
{{- include "ringspan.fault" (list $faults (printf "%s: holds a URL with a password; put it into a Secret, or set allowLiteralSecretsInConfig: true" $where)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $upstream := $v.config.upstream -}}
{{- range concat (list $upstream) (default list $upstream.endpoint) -}}
{{- if and (kindIs "map" .auth) (not (has .auth.bearer_env (concat (list) (include "ringspan.envNames" $root | fromJsonArray)))) (empty $v.extraEnvFrom) -}}
{{- include "ringspan.fault" (list $faults (printf "config.upstream: %s wants the variable %s, which neither secrets.env nor extraEnv gives" .name .auth.bearer_env)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Names of the variables that values add. */}}
{{- define "ringspan.envNames" -}}
{{- $names := list -}}
{{- range concat .Values.extraEnv .Values.secrets.env -}}
{{- $names = append $names .name -}}
{{- end -}}
{{- toJson $names -}}
{{- end -}}

{{- define "ringspan.guardMigrations" -}}
{{- $root := index . 0 -}}
{{- $faults := index . 1 -}}
{{- $v := $root.Values -}}
{{- $m := $v.migrations -}}
{{- if and (ne $m.strategy "external") (lt (int $m.waitTimeoutSeconds) (int $m.activeDeadlineSeconds)) -}}
{{- include "ringspan.fault" (list $faults (printf "migrations.waitTimeoutSeconds: pods would give up after %d s, before the Job's limit of %d s (activeDeadlineSeconds)" (int $m.waitTimeoutSeconds) (int $m.activeDeadlineSeconds))) -}}
{{- end -}}
{{- if and (eq $m.strategy "hook") $root.Release.IsInstall (not (include "ringspan.migrationsReady" $root)) -}}
{{- include "ringspan.fault" (list $faults "migrations.strategy: hook cannot work on a first install here, because it runs before the Secret, the database or the ServiceAccount that this chart makes; use auto") -}}
{{- end -}}
{{- end -}}

{{- define "ringspan.guardNetwork" -}}
{{- $root := index . 0 -}}
{{- $faults := index . 1 -}}
{{- $v := $root.Values -}}
{{- $ports := list (int $v.ports.http) (int $v.ports.admin) -}}
{{- with $v.peer.port -}}{{- $ports = append $ports (int .) -}}{{- end -}}
{{- if ne (len $ports) (len (uniq $ports)) -}}
{{- include "ringspan.fault" (list $faults "ports.http, ports.admin, peer.port: must differ") -}}
{{- end -}}
{{- if and $v.metrics.serviceMonitor.enabled $v.metrics.podMonitor.enabled -}}
{{- include "ringspan.fault" (list $faults "metrics: serviceMonitor and podMonitor would scrape every node twice; enable one") -}}
{{- end -}}
{{- if and $v.gateway.enabled (not $v.gateway.create) (empty $v.gateway.parentRefs) -}}
{{- include "ringspan.fault" (list $faults "gateway.parentRefs: the route belongs to no Gateway; name one, or create: true") -}}
{{- end -}}
{{- if and $v.gateway.create (or (not $v.gateway.className) (empty $v.gateway.listeners)) -}}
{{- include "ringspan.fault" (list $faults "gateway.className, gateway.listeners: missing for the chart's own Gateway") -}}
{{- end -}}
{{- if and $v.ingress.enabled (empty $v.ingress.hosts) -}}
{{- include "ringspan.fault" (list $faults "ingress.hosts: missing") -}}
{{- end -}}
{{- if and $v.ingress.enabled (eq $v.ingress.controller "alb") (gt (int64 (include "ringspan.seconds" $v.sessionIdleLimit)) 4000) -}}
{{- include "ringspan.fault" (list $faults "sessionIdleLimit: an AWS load balancer cuts silent connections after 4000 s at most") -}}
{{- end -}}
{{- end -}}

{{- define "ringspan.guardImage" -}}
{{- $root := index . 0 -}}
{{- $faults := index . 1 -}}
{{- $v := $root.Values -}}
{{- if eq $v.image.tag "latest" -}}
{{- include "ringspan.fault" (list $faults "image.tag: latest does not say which release runs; give a release or a digest") -}}
{{- end -}}
{{- if regexMatch ":latest$" $v.database.dev.image -}}
{{- include "ringspan.fault" (list $faults "database.dev.image: latest does not say which release runs; give a release or a digest") -}}
{{- end -}}
{{- if and $v.test.enabled (not (has $v.test.route (include "ringspan.routePaths" $root | fromJsonArray))) -}}
{{- include "ringspan.fault" (list $faults (printf "test.route: config has no route %s; name one of %s, or test.enabled: false" $v.test.route (include "ringspan.routePaths" $root))) -}}
{{- end -}}
{{- end -}}

{{- define "ringspan.routePaths" -}}
{{- $paths := list -}}
{{- range .Values.config.route -}}{{- $paths = append $paths .path -}}{{- end -}}
{{- toJson $paths -}}
{{- end -}}
