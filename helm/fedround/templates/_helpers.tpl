{{/* The URL of the coordinator in this release, unless its values change the name or the scheme. `.` is the root of any chart. */}}
{{- define "fedround.coordinatorUrl" -}}
{{- $coordinator := dict "Release" .Release "Chart" (dict "Name" "coordinator" "IsRoot" false) "Values" dict }}
{{- printf "http://%s:8081" (include "participant.fullname" $coordinator) }}
{{- end }}

{{/* Contradictions between the values of the subcharts. */}}
{{- define "fedround.check" -}}
{{- if and (hasKey .Values "enabled") (not .Values.enabled) }}{{ fail "enabled=false has no effect: no condition of a parent chart reads it" }}{{ end }}
{{- if .Values.silo.enabled }}
{{- if eq (tpl .Values.silo.coordinator.url .) (include "fedround.coordinatorUrl" .) }}
{{- if not .Values.coordinator.enabled }}{{ fail "silo.coordinator.url is required: coordinator.enabled is false" }}{{ end }}
{{- $actual := include "coordinator.url" .Subcharts.coordinator }}
{{- if ne $actual (include "fedround.coordinatorUrl" .) }}{{ fail (printf "silo.coordinator.url: the values of the coordinator change its URL, set %s" $actual) }}{{ end }}
{{- end }}
{{- end }}
{{- end }}
