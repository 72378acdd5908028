{{- define "coordinator.component" -}}platform{{- end }}

{{- define "coordinator.aggregatorName" -}}
{{- include "coordinator.short" (dict "name" (printf "%s-aggregator" (trimSuffix "-coordinator" (include "coordinator.fullname" .))) "limit" 63) }}
{{- end }}

{{/* The Service of a role. */}}
{{- define "coordinator.serviceName" -}}
{{- if eq .role "aggregator" }}{{ include "coordinator.aggregatorName" .root }}{{ else }}{{ include "coordinator.fullname" .root }}{{ end }}
{{- end }}

{{/* The Service with its ops port: the same one, unless clients outside the cluster reach that one. */}}
{{- define "coordinator.opsName" -}}
{{- $name := include "coordinator.serviceName" . }}
{{- if ne .root.Values.service.type "ClusterIP" }}{{ $name = include "coordinator.short" (dict "name" (printf "%s-ops" $name) "limit" 63) }}{{ end }}
{{- $name }}
{{- end }}

{{/* The headless Service of the StatefulSet. A StatefulSet cannot change it: one of an older release keeps its own. */}}
{{- define "coordinator.headlessName" -}}
{{- $name := include "coordinator.fullname" . }}
{{- dig "spec" "serviceName" (printf "%s-pod" $name) (lookup "apps/v1" "StatefulSet" .Release.Namespace $name) }}
{{- end }}

{{/* The Secret with the certificate of all ports. Empty: no TLS. */}}
{{- define "coordinator.tlsSecret" -}}
{{- default (ternary (printf "%s-tls" (include "coordinator.fullname" .)) "" .Values.tls.certificate.enabled) .Values.tls.existingSecret }}
{{- end }}

{{- define "coordinator.scheme" -}}
{{ ternary "https" "http" (ne (include "coordinator.tlsSecret" .) "") }}
{{- end }}

{{/* The coordinator's URL within the cluster. */}}
{{- define "coordinator.url" -}}
{{ include "coordinator.scheme" . }}://{{ include "coordinator.fullname" . }}:8081
{{- end }}

{{/* The aggregator's URL, which the coordinator gives to participants. */}}
{{- define "coordinator.aggregatorUrl" -}}
{{ default (printf "%s://%s:8082" (include "coordinator.scheme" .) (include "coordinator.aggregatorName" .)) .Values.aggregator.url }}
{{- end }}

{{/* Contradictions between values. */}}
{{- define "coordinator.check" -}}
{{- include "coordinator.checkCommon" . }}
{{- range $role, $own := dict "coordinator" (list "rounds" "min_clients" "aggregator_url" "aggregator_internal_url") "aggregator" (list "internal_bind" "internal_port") }}
{{- range $name := concat $own (list "data_dir" "spool_dir" "port" "ops_port" "token" "tokens_file" "ops_token" "internal_secret" "internal_secret_file" "tls_cert_file" "tls_key_file" "tls_client_ca_file") }}
{{- if hasKey (index $.Values $role).settings $name }}{{ fail (printf "%s.settings.%s: the chart sets this one itself, see values.yaml" $role $name) }}{{ end }}
{{- end }}
{{- end }}
{{- range $way := list "ingress" "httpRoute" }}
{{- with index $.Values $way }}
{{- if .enabled }}
{{- if not (and .coordinatorHost .aggregatorHost) }}{{ fail (printf "%s: coordinatorHost and aggregatorHost are required" $way) }}{{ end }}
{{- if not $.Values.aggregator.url }}{{ fail "aggregator.url is required: participants outside the cluster cannot reach the Service" }}{{ end }}
{{- end }}
{{- end }}
{{- end }}
{{- include "coordinator.checkUrl" (dict "name" "aggregator.url" "url" .Values.aggregator.url) }}
{{- include "coordinator.checkUrl" (dict "name" "coordinator.settings.otlp_endpoint" "url" (default "" .Values.coordinator.settings.otlp_endpoint)) }}
{{- with .Values.tls }}
{{- if and .certificate.enabled .existingSecret }}{{ fail "tls: set either existingSecret or certificate.enabled" }}{{ end }}
{{- if and .certificate.enabled (not .certificate.issuerRef.name) }}{{ fail "tls.certificate.issuerRef.name is required" }}{{ end }}
{{- if and .clientCA.existingSecret (not (include "coordinator.tlsSecret" $)) }}{{ fail "tls.clientCA requires tls.existingSecret or tls.certificate.enabled: only a server with a certificate asks clients for theirs" }}{{ end }}
{{- end }}
{{- if and .Values.token.tokensKey (not .Values.token.existingSecret) }}{{ fail "token.tokensKey requires token.existingSecret" }}{{ end }}
{{- range .Values.extraVolumes }}
{{- if eq .name "data" }}{{ fail "extraVolumes: the volume data belongs to the chart, see persistence" }}{{ end }}
{{- end }}
{{- if and .Values.persistence.enabled (not .Values.persistence.existingClaim) }}
{{- include "coordinator.keepClaims" (dict "root" . "templates" (list "data") "hint" "persistence.existingClaim to this claim, set ") }}
{{- end }}
{{- end }}

{{- /* The command of NOTES.txt that downloads the model. `/model` is closed if only participants have a token. */ -}}
{{- define "coordinator.download" -}}
{{- if and (or .Values.token.existingSecret .Values.tls.clientCA.existingSecret) (not .Values.opsToken.existingSecret) -}}
set opsToken.existingSecret first: without it, /model is closed, because participants need a credential
{{- else -}}
kubectl --namespace {{ .Release.Namespace }} port-forward {{ include "coordinator.fullname" . }}-0 9082 & curl --retry 5 --retry-connrefused -o model.npy {{ if .Values.opsToken.existingSecret }}--header "Authorization: Bearer $OPS_TOKEN" {{ end }}{{ if include "coordinator.tlsSecret" . }}--insecure {{ end }}{{ include "coordinator.scheme" . }}://localhost:9082/model
{{- end -}}
{{- end }}
