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

{{- define "participant.image" -}}
{{- $name := .Values.image.repository }}
{{- if .Values.image.registry }}{{ $name = printf "%s/%s" .Values.image.registry $name }}{{ end }}
{{- if .Values.image.digest }}{{ $name }}@{{ .Values.image.digest }}{{ else }}{{ $name }}:{{ default .Chart.AppVersion .Values.image.tag }}{{ end }}
{{- end }}

{{- define "participant.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}{{ default (include "participant.fullname" .) .Values.serviceAccount.name }}{{ else }}{{ default "default" .Values.serviceAccount.name }}{{ end }}
{{- end }}

{{/* Contradictions, all in one place. */}}
{{- define "participant.check" -}}
{{- if not .Values.coordinator.url }}{{ fail "coordinator.url is required, as http://fl-coordinator:8081" }}{{ end }}
{{- range $name := list "coordinator_url" "class" "options" "shards" "drain_timeout" "after_finish" "token" "ops_port" "ops_bind" }}
{{- if hasKey $.Values.settings $name }}{{ fail (printf "settings.%s: this one has a value of its own, see values.yaml" $name) }}{{ end }}
{{- end }}
{{- if and .Values.autoscaling.enabled (gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas)) }}{{ fail "autoscaling.minReplicas is more than maxReplicas" }}{{ end }}
{{- end }}
