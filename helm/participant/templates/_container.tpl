{{/* The variables of the container that the chart sets itself. */}}
{{- define "participant.env" -}}
- name: PARTICIPANT_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: K8S_NAMESPACE
  valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
- name: K8S_POD_UID
  valueFrom: {fieldRef: {fieldPath: metadata.uid}}
- name: K8S_NODE
  valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
- name: OTEL_RESOURCE_ATTRIBUTES
  value: {{ printf "k8s.namespace.name=$(K8S_NAMESPACE),k8s.pod.name=$(PARTICIPANT_NAME),k8s.pod.uid=$(K8S_POD_UID),k8s.node.name=$(K8S_NODE)%s" (include "participant.resourceAttributes" .Values.otel.resourceAttributes) | quote }}
{{- if eq .Values.kind "StatefulSet" }}
- name: POD_INDEX
  valueFrom: {fieldRef: {fieldPath: "metadata.labels['apps.kubernetes.io/pod-index']"}}
{{- end }}
{{- with .Values.token.existingSecret }}
- name: PARTICIPANT_TOKEN
  valueFrom: {secretKeyRef: {name: {{ . }}, key: {{ $.Values.token.key }}}}
{{- end }}
{{- with .Values.opsToken.existingSecret }}
- name: PARTICIPANT_OPS_TOKEN
  valueFrom: {secretKeyRef: {name: {{ . }}, key: {{ $.Values.opsToken.key }}}}
{{- end }}
{{- if .Values.tls.existingSecret }}
- {name: PARTICIPANT_TLS_CERT_FILE, value: /etc/fedround-tls/tls.crt}
- {name: PARTICIPANT_TLS_KEY_FILE, value: /etc/fedround-tls/tls.key}
{{- end }}
{{- if .Values.tls.ca.existingSecret }}
- {name: PARTICIPANT_TLS_CA_FILE, value: /etc/fedround-ca/ca.crt}
{{- end }}
{{- end }}

{{- define "participant.volumeMounts" -}}
- {name: tmp, mountPath: /tmp}
{{- if .Values.tls.existingSecret }}
- {name: tls, mountPath: /etc/fedround-tls, readOnly: true}
{{- end }}
{{- if .Values.tls.ca.existingSecret }}
- {name: ca, mountPath: /etc/fedround-ca, readOnly: true}
{{- end }}
{{- end }}

{{- define "participant.volumes" -}}
- name: tmp
  emptyDir: {sizeLimit: {{ .Values.tmpSizeLimit }}}
{{- with .Values.tls.existingSecret }}
- name: tls
  secret: {secretName: {{ . }}}
{{- end }}
{{- with .Values.tls.ca }}
{{- if .existingSecret }}
- name: ca
  secret: {secretName: {{ .existingSecret }}, items: [{key: {{ .key }}, path: ca.crt}]}
{{- end }}
{{- end }}
{{- end }}
