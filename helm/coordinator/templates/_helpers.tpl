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

{{- define "coordinator.image" -}}
{{- $name := .Values.image.repository }}
{{- if .Values.image.registry }}{{ $name = printf "%s/%s" .Values.image.registry $name }}{{ end }}
{{- if .Values.image.digest }}{{ $name }}@{{ .Values.image.digest }}{{ else }}{{ $name }}:{{ default .Chart.AppVersion .Values.image.tag }}{{ end }}
{{- end }}

{{- define "coordinator.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}{{ default (include "coordinator.fullname" .) .Values.serviceAccount.name }}{{ else }}{{ default "default" .Values.serviceAccount.name }}{{ end }}
{{- end }}

{{/* Contradictions, all in one place. */}}
{{- define "coordinator.check" -}}
{{- range $role, $own := dict "coordinator" (list "rounds" "min_clients" "aggregator_url" "aggregator_internal_url") "aggregator" (list "internal_bind" "internal_port") }}
{{- range $name := concat $own (list "data_dir" "spool_dir" "port" "ops_port" "bind" "token" "tokens_file" "internal_secret") }}
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
{{- if and .Values.token.tokensKey (not .Values.token.existingSecret) }}{{ fail "token.tokensKey: of which token.existingSecret?" }}{{ end }}
{{- end }}

{{- define "coordinator.aggregatorName" -}}
{{ trimSuffix "-coordinator" (include "coordinator.fullname" .) }}-aggregator
{{- end }}

{{/* One of the two containers: role, its ports, and what it is given. */}}
{{- define "coordinator.container" -}}
{{- $root := .root }}
- name: {{ .role }}
  image: {{ include "coordinator.image" $root }}
  imagePullPolicy: {{ $root.Values.image.pullPolicy }}
  args: [{{ .role }}]
  securityContext: {{- toYaml $root.Values.securityContext | nindent 4 }}
  envFrom:
    - configMapRef: {name: {{ include "coordinator.fullname" $root }}}
    {{- with $root.Values.extraEnvFrom }}{{ toYaml . | nindent 4 }}{{ end }}
  env:
    - name: K8S_POD
      valueFrom: {fieldRef: {fieldPath: metadata.name}}
    - name: K8S_NAMESPACE
      valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
    - name: OTEL_RESOURCE_ATTRIBUTES
      value: k8s.namespace.name=$(K8S_NAMESPACE),k8s.pod.name=$(K8S_POD)
    {{- with $root.Values.token }}
    {{- if and .existingSecret .tokensKey }}
    - name: {{ upper $.role }}_TOKENS_FILE
      value: /etc/fedround/tokens
    {{- else if .existingSecret }}
    - name: {{ upper $.role }}_TOKEN
      valueFrom: {secretKeyRef: {name: {{ .existingSecret }}, key: {{ .key }}}}
    {{- end }}
    {{- end }}
    {{- with $root.Values.extraEnv }}{{ toYaml . | nindent 4 }}{{ end }}
  ports:
    - {name: {{ .role }}, containerPort: {{ .port }}}
    - {name: {{ .role }}-ops, containerPort: {{ .ops }}}
  startupProbe:
    tcpSocket: {port: {{ .role }}-ops}
    periodSeconds: 2
    failureThreshold: 30
  livenessProbe:
    httpGet: {path: /livez, port: {{ .role }}-ops}
    periodSeconds: 10
    timeoutSeconds: 5
    failureThreshold: 6
  readinessProbe:
    httpGet: {path: /readyz, port: {{ .role }}-ops}
    periodSeconds: 2
    timeoutSeconds: 2
  resources: {{- toYaml (index $root.Values .role).resources | nindent 4 }}
  volumeMounts:
    - {name: data, mountPath: /data}
    - {name: tmp, mountPath: /tmp}
    {{- if $root.Values.token.tokensKey }}
    - {name: tokens, mountPath: /etc/fedround, readOnly: true}
    {{- end }}
    {{- with $root.Values.extraVolumeMounts }}{{ toYaml . | nindent 4 }}{{ end }}
{{- end }}
