{{/*
What each controller needs so that it does not cut silent sockets, hold back events or refuse
large requests. Traefik's idle limit is one of its entry points, not of an Ingress: see the README.
*/}}
{{- define "ringspan.ingressAnnotations" -}}
{{- $idle := include "ringspan.seconds" .Values.sessionIdleLimit -}}
{{- if eq .Values.ingress.controller "nginx" -}}
nginx.ingress.kubernetes.io/proxy-read-timeout: {{ $idle | quote }}
nginx.ingress.kubernetes.io/proxy-send-timeout: {{ $idle | quote }}
nginx.ingress.kubernetes.io/proxy-buffering: "off"
nginx.ingress.kubernetes.io/proxy-request-buffering: "off"
# ringspan limits messages itself.
nginx.ingress.kubernetes.io/proxy-body-size: "0"
# A request is tried once: the ring itself knows what may be tried again.
nginx.ingress.kubernetes.io/proxy-next-upstream-tries: "1"
{{- else if eq .Values.ingress.controller "traefik" -}}
traefik.ingress.kubernetes.io/router.entrypoints: websecure
{{- else if eq .Values.ingress.controller "haproxy" -}}
haproxy.org/timeout-server: {{ printf "%ss" $idle | quote }}
haproxy.org/timeout-tunnel: {{ printf "%ss" $idle | quote }}
haproxy-ingress.github.io/timeout-client: {{ printf "%ss" $idle | quote }}
haproxy-ingress.github.io/timeout-server: {{ printf "%ss" $idle | quote }}
haproxy-ingress.github.io/timeout-tunnel: {{ printf "%ss" $idle | quote }}
{{- else if eq .Values.ingress.controller "alb" -}}
alb.ingress.kubernetes.io/target-type: ip
alb.ingress.kubernetes.io/backend-protocol: HTTP
alb.ingress.kubernetes.io/load-balancer-attributes: {{ printf "idle_timeout.timeout_seconds=%s" $idle | quote }}
alb.ingress.kubernetes.io/target-group-attributes: {{ printf "deregistration_delay.timeout_seconds=%s,load_balancing.algorithm.type=least_outstanding_requests" (include "ringspan.drainSeconds" .) | quote }}
alb.ingress.kubernetes.io/healthcheck-port: {{ int .Values.ports.admin | toString | quote }}
alb.ingress.kubernetes.io/healthcheck-path: /health/ready
alb.ingress.kubernetes.io/success-codes: "200"
{{- else if eq .Values.ingress.controller "gke" -}}
kubernetes.io/ingress.class: gce
{{- end -}}
{{- end -}}
