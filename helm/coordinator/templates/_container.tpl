{{/* The variables of a container that the chart sets itself. */}}
{{- define "coordinator.env" -}}
{{- $values := .root.Values }}
- name: K8S_NAMESPACE
  valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
- name: K8S_POD
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: K8S_POD_UID
  valueFrom: {fieldRef: {fieldPath: metadata.uid}}
- name: K8S_NODE
  valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
- name: OTEL_RESOURCE_ATTRIBUTES
  value: {{ printf "k8s.namespace.name=$(K8S_NAMESPACE),k8s.pod.name=$(K8S_POD),k8s.pod.uid=$(K8S_POD_UID),k8s.node.name=$(K8S_NODE),k8s.container.name=%s%s" .role (include "coordinator.resourceAttributes" $values.otel.resourceAttributes) | quote }}
{{- with $values.token }}
{{- if and .existingSecret .tokensKey }}
- name: {{ upper $.role }}_TOKENS_FILE
  value: /etc/fedround/tokens
{{- else if .existingSecret }}
- name: {{ upper $.role }}_TOKEN
  valueFrom: {secretKeyRef: {name: {{ .existingSecret }}, key: {{ .key }}}}
{{- end }}
{{- end }}
{{- with $values.opsToken.existingSecret }}
- name: {{ upper $.role }}_OPS_TOKEN
  valueFrom: {secretKeyRef: {name: {{ . }}, key: {{ $values.opsToken.key }}}}
{{- end }}
{{- if include "coordinator.tlsSecret" .root }}
- {name: {{ upper .role }}_TLS_CERT_FILE, value: /etc/fedround-tls/tls.crt}
- {name: {{ upper .role }}_TLS_KEY_FILE, value: /etc/fedround-tls/tls.key}
{{- if $values.tls.clientCA.existingSecret }}
- {name: {{ upper .role }}_TLS_CLIENT_CA_FILE, value: /etc/fedround-client-ca/ca.crt}
{{- end }}
{{- end }}
{{- end }}

{{- define "coordinator.volumeMounts" -}}
- {name: data, mountPath: /data}
- {name: tmp, mountPath: /tmp}
{{- if .Values.token.tokensKey }}
- {name: tokens, mountPath: /etc/fedround, readOnly: true}
{{- end }}
{{- if include "coordinator.tlsSecret" . }}
- {name: tls, mountPath: /etc/fedround-tls, readOnly: true}
{{- end }}
{{- if .Values.tls.clientCA.existingSecret }}
- {name: client-ca, mountPath: /etc/fedround-client-ca, readOnly: true}
{{- end }}
{{- end }}

{{/* One of the two containers: its `role` and its ports. */}}
{{- define "coordinator.container" -}}
{{- $values := .root.Values }}
{{- $https := ternary ", scheme: HTTPS" "" (ne (include "coordinator.tlsSecret" .root) "") }}
- name: {{ .role }}
  image: {{ include "coordinator.image" .root }}
  imagePullPolicy: {{ $values.image.pullPolicy }}
  args: [{{ .role }}]
  {{- with $values.securityContext }}
  securityContext: {{- toYaml . | nindent 4 }}
  {{- end }}
  envFrom:
    - configMapRef: {name: {{ include "coordinator.fullname" .root }}}
    {{- with $values.extraEnvFrom }}{{ toYaml . | nindent 4 }}{{ end }}
  env: {{- include "coordinator.override" (dict "key" "name" "ours" (include "coordinator.env" .) "theirs" $values.extraEnv) | nindent 4 }}
  ports:
    - {name: {{ .role }}, containerPort: {{ .port }}}
    - {name: {{ .role }}-ops, containerPort: {{ .ops }}}
  startupProbe:
    tcpSocket: {port: {{ .role }}-ops}
    periodSeconds: 2
    failureThreshold: {{ max 1 (div (int $values.startupSeconds) 2) }}
  livenessProbe:
    httpGet: {path: /livez, port: {{ .role }}-ops{{ $https }}}
    {{- toYaml $values.livenessProbe | nindent 4 }}
  readinessProbe:
    httpGet: {path: /readyz, port: {{ .role }}-ops{{ $https }}}
    {{- toYaml $values.readinessProbe | nindent 4 }}
  {{- with (index $values .role).resources }}
  resources: {{- toYaml . | nindent 4 }}
  {{- end }}
  volumeMounts: {{- include "coordinator.override" (dict "key" "mountPath" "ours" (include "coordinator.volumeMounts" .root) "theirs" $values.extraVolumeMounts) | nindent 4 }}
{{- end }}
