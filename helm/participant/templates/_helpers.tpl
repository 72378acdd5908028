{{- define "participant.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "participant.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" }}
{{- else if contains (include "participant.name" .) .Release.Name }}
{{- .Release.Name | trunc 52 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "participant.name" .) | trunc 52 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "participant.selectorLabels" -}}
app.kubernetes.io/name: {{ include "participant.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: participant
{{- end }}

{{- define "participant.labels" -}}
{{ include "participant.selectorLabels" . }}
app.kubernetes.io/part-of: fedround
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{/* Of an object; its `name` where that is not the usual one, and its own `labels` and `annotations`, beside those of all. */}}
{{- define "participant.metadata" -}}
name: {{ default (include "participant.fullname" .root) .name }}
labels: {{- merge (include "participant.labels" .root | fromYaml) (default dict .labels) .root.Values.commonLabels | toYaml | nindent 2 }}
{{- with merge dict (default dict .annotations) .root.Values.commonAnnotations }}
annotations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "participant.image" -}}
{{- $name := .Values.image.repository }}
{{- if .Values.image.registry }}{{ $name = printf "%s/%s" .Values.image.registry $name }}{{ end }}
{{- if .Values.image.digest }}{{ $name }}@{{ .Values.image.digest }}{{ else }}{{ $name }}:{{ default .Chart.AppVersion .Values.image.tag }}{{ end }}
{{- end }}

{{- define "participant.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}{{ default (include "participant.fullname" .) .Values.serviceAccount.name }}{{ else }}{{ default "default" .Values.serviceAccount.name }}{{ end }}
{{- end }}

{{/* Where pods may be, and how they are pulled: the same for those of helm test. */}}
{{- define "participant.placement" -}}
{{- range $key := list "imagePullSecrets" "priorityClassName" "runtimeClassName" "nodeSelector" "tolerations" "affinity" "dnsConfig" }}
{{- with index $.Values $key }}
{{ $key }}: {{ toJson . }}
{{- end }}
{{- end }}
{{- end }}

{{/* A value as text: YAML's numbers would come out as 1e+06. */}}
{{- define "participant.text" -}}
{{- if kindIs "string" . }}{{ . }}{{ else }}{{ toJson . }}{{ end }}
{{- end }}

{{/* The port in a URL. */}}
{{- define "participant.port" -}}
{{- $url := urlParse . }}
{{- regexFind ":[0-9]+$" $url.host | trimPrefix ":" | default (ternary "443" "80" (eq $url.scheme "https")) }}
{{- end }}

{{/* Contradictions, all in one place. */}}
{{- define "participant.check" -}}
{{- if not .Values.coordinator.url }}{{ fail "coordinator.url is required, as http://fl-coordinator:8081" }}{{ end }}
{{- range $name := list "coordinator_url" "class" "flower" "options" "name" "shards" "drain_timeout" "after_finish" "token" "ops_token" "ops_port" "ops_bind" }}
{{- if hasKey $.Values.settings $name }}{{ fail (printf "settings.%s: the chart sets this one itself, see values.yaml" $name) }}{{ end }}
{{- end }}
{{- if and .Values.tls.existingSecret (or .Values.settings.tls_cert_file .Values.settings.tls_key_file) }}{{ fail "settings.tls_cert_file: or tls.existingSecret?" }}{{ end }}
{{- if and .Values.tls.ca.existingSecret .Values.settings.tls_ca_file }}{{ fail "settings.tls_ca_file: or tls.ca.existingSecret?" }}{{ end }}
{{- with .Values.autoscaling }}
{{- if .enabled }}
{{- if gt (int .minReplicas) (int .maxReplicas) }}{{ fail "autoscaling.minReplicas is more than maxReplicas" }}{{ end }}
{{- if not (or .targetCPUUtilizationPercentage .targetMemoryUtilizationPercentage .metrics) }}{{ fail "autoscaling: by what? It has no target and no metrics" }}{{ end }}
{{- if not $.Values.shards }}{{ fail "shards: 0 means as many as replicas, and autoscaling changes those: say how many, or 1 for a data set in each pod" }}{{ end }}
{{- end }}
{{- end }}
{{- if and .Values.volumeClaimTemplates (ne .Values.kind "StatefulSet") }}{{ fail "volumeClaimTemplates: only a StatefulSet makes claims" }}{{ end }}
{{- end }}
