{{- define "participant.component" -}}participant{{- end }}

{{/* Contradictions between values. */}}
{{- define "participant.check" -}}
{{- include "participant.checkCommon" . }}
{{- if not .Values.coordinator.url }}{{ fail "coordinator.url is required, for example http://fl-coordinator:8081" }}{{ end }}
{{- include "participant.checkUrl" (dict "name" "coordinator.url" "url" .Values.coordinator.url) }}
{{- range $name := list "coordinator_url" "class" "flower" "options" "name" "shards" "drain_timeout" "after_finish" "token" "ops_token" "ops_port" }}
{{- if hasKey $.Values.settings $name }}{{ fail (printf "settings.%s: the chart sets this one itself, see values.yaml" $name) }}{{ end }}
{{- end }}
{{- if and .Values.tls.existingSecret (or .Values.settings.tls_cert_file .Values.settings.tls_key_file) }}{{ fail "settings.tls_cert_file: remove it, or tls.existingSecret" }}{{ end }}
{{- if and .Values.tls.ca.existingSecret .Values.settings.tls_ca_file }}{{ fail "settings.tls_ca_file: remove it, or tls.ca.existingSecret" }}{{ end }}
{{- with .Values.autoscaling }}
{{- if .enabled }}
{{- if gt (int .minReplicas) (int .maxReplicas) }}{{ fail "autoscaling.minReplicas is more than maxReplicas" }}{{ end }}
{{- if not (or .targetCPUUtilizationPercentage .targetMemoryUtilizationPercentage .metrics) }}{{ fail "autoscaling requires a target or metrics" }}{{ end }}
{{- if not $.Values.shards }}{{ fail "shards is required with autoscaling: 0 means the number of replicas, which changes. Set the number of parts, or 1 if each pod has its own data set" }}{{ end }}
{{- end }}
{{- end }}
{{- if .Values.volumeClaimTemplates }}
{{- if ne .Values.kind "StatefulSet" }}{{ fail "volumeClaimTemplates requires kind=StatefulSet" }}{{ end }}
{{- $templates := list }}
{{- range .Values.volumeClaimTemplates }}{{ $templates = append $templates .metadata.name }}{{ end }}
{{- include "participant.keepClaims" (dict "root" . "templates" $templates "hint" "") }}
{{- end }}
{{- end }}
