{{- define "coordinator.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "coordinator.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" }}
{{- else if contains (include "coordinator.name" .) .Release.Name }}
{{- .Release.Name | trunc 52 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "coordinator.name" .) | trunc 52 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "coordinator.selectorLabels" -}}
app.kubernetes.io/name: {{ include "coordinator.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: platform
{{- end }}

{{- define "coordinator.labels" -}}
{{ include "coordinator.selectorLabels" . }}
app.kubernetes.io/part-of: fedround
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{/* Of an object; its `name` where that is not the usual one, and its own `labels` and `annotations`, beside those of all. */}}
{{- define "coordinator.metadata" -}}
name: {{ default (include "coordinator.fullname" .root) .name }}
labels: {{- merge (include "coordinator.labels" .root | fromYaml) (default dict .labels) .root.Values.commonLabels | toYaml | nindent 2 }}
{{- with merge dict (default dict .annotations) .root.Values.commonAnnotations }}
annotations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "coordinator.image" -}}
{{- $name := .Values.image.repository }}
{{- if .Values.image.registry }}{{ $name = printf "%s/%s" .Values.image.registry $name }}{{ end }}
{{- if .Values.image.digest }}{{ $name }}@{{ .Values.image.digest }}{{ else }}{{ $name }}:{{ default .Chart.AppVersion .Values.image.tag }}{{ end }}
{{- end }}

{{- define "coordinator.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}{{ default (include "coordinator.fullname" .) .Values.serviceAccount.name }}{{ else }}{{ default "default" .Values.serviceAccount.name }}{{ end }}
{{- end }}

{{/* Where pods may be, and how they are pulled: the same for those of helm test. */}}
{{- define "coordinator.placement" -}}
{{- range $key := list "imagePullSecrets" "priorityClassName" "runtimeClassName" "nodeSelector" "tolerations" "affinity" "dnsConfig" }}
{{- with index $.Values $key }}
{{ $key }}: {{ toJson . }}
{{- end }}
{{- end }}
{{- end }}

{{/* A value as text: YAML's numbers would come out as 1e+06. */}}
{{- define "coordinator.text" -}}
{{- if kindIs "string" . }}{{ . }}{{ else }}{{ toJson . }}{{ end }}
{{- end }}

{{/* The port in a URL. */}}
{{- define "coordinator.port" -}}
{{- $url := urlParse . }}
{{- regexFind ":[0-9]+$" $url.host | trimPrefix ":" | default (ternary "443" "80" (eq $url.scheme "https")) }}
{{- end }}

{{- define "coordinator.aggregatorName" -}}
{{ trimSuffix "-coordinator" (include "coordinator.fullname" .) }}-aggregator
{{- end }}

{{/* The Service of a role. */}}
{{- define "coordinator.serviceName" -}}
{{- if eq .role "aggregator" }}{{ include "coordinator.aggregatorName" .root }}{{ else }}{{ include "coordinator.fullname" .root }}{{ end }}
{{- end }}

{{/* And the one with its ops port: the same, unless that one is open to the world. */}}
{{- define "coordinator.opsName" -}}
{{- include "coordinator.serviceName" . }}{{ if ne .root.Values.service.type "ClusterIP" }}-ops{{ end }}
{{- end }}

{{/* The Secret with the certificate of all ports; empty: no TLS. */}}
{{- define "coordinator.tlsSecret" -}}
{{- default (ternary (printf "%s-tls" (include "coordinator.fullname" .)) "" .Values.tls.certificate.enabled) .Values.tls.existingSecret }}
{{- end }}

{{- define "coordinator.scheme" -}}
{{ ternary "https" "http" (ne (include "coordinator.tlsSecret" .) "") }}
{{- end }}

{{/* Where participants are told that the aggregator is. */}}
{{- define "coordinator.aggregatorUrl" -}}
{{ default (printf "%s://%s:8082" (include "coordinator.scheme" .) (include "coordinator.aggregatorName" .)) .Values.aggregator.url }}
{{- end }}

{{/* Contradictions, all in one place. */}}
{{- define "coordinator.check" -}}
{{- range $role, $own := dict "coordinator" (list "rounds" "min_clients" "aggregator_url" "aggregator_internal_url") "aggregator" (list "internal_bind" "internal_port") }}
{{- range $name := concat $own (list "data_dir" "spool_dir" "port" "ops_port" "bind" "token" "tokens_file" "ops_token" "internal_secret" "internal_secret_file" "tls_cert_file" "tls_key_file" "tls_client_ca_file") }}
{{- if hasKey (index $.Values $role).settings $name }}{{ fail (printf "%s.settings.%s: the chart sets this one itself, see values.yaml" $role $name) }}{{ end }}
{{- end }}
{{- end }}
{{- range $way := list "ingress" "httpRoute" }}
{{- with index $.Values $way }}
{{- if .enabled }}
{{- if not (and .coordinatorHost .aggregatorHost) }}{{ fail (printf "%s: coordinatorHost and aggregatorHost are required" $way) }}{{ end }}
{{- if not $.Values.aggregator.url }}{{ fail "aggregator.url is required: silos outside the cluster do not reach the Service" }}{{ end }}
{{- end }}
{{- end }}
{{- end }}
{{- with .Values.tls }}
{{- if and .certificate.enabled .existingSecret }}{{ fail "tls: existingSecret, or certificate.enabled?" }}{{ end }}
{{- if and .certificate.enabled (not .certificate.issuerRef.name) }}{{ fail "tls.certificate.issuerRef.name is required" }}{{ end }}
{{- if and .clientCA.existingSecret (not (include "coordinator.tlsSecret" $)) }}{{ fail "tls.clientCA: only a server with a certificate asks for others" }}{{ end }}
{{- end }}
{{- if and .Values.token.tokensKey (not .Values.token.existingSecret) }}{{ fail "token.tokensKey: of which token.existingSecret?" }}{{ end }}
{{- end }}
