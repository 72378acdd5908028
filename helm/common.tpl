{{/* Shorten a name to a limit. A hash of the whole name keeps names distinct that begin alike. */}}
{{- define "chart.short" -}}
{{- if gt (len .name) .limit }}
{{- printf "%s-%s" (.name | trunc (int (sub .limit 9)) | trimSuffix "-") (.name | sha256sum | trunc 8) }}
{{- else }}
{{- trimSuffix "-" .name }}
{{- end }}
{{- end }}

{{/* The name in labels. The test pods append "-test" to it. */}}
{{- define "chart.name" -}}
{{- include "chart.short" (dict "name" (default .Chart.Name .Values.nameOverride) "limit" 58) }}
{{- end }}

{{/* The name of the objects. A StatefulSet appends 11 characters in a label, which holds 63.
     A subchart always has its own name in it: a parent may install several of them in one release. */}}
{{- define "chart.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- $full := printf "%s-%s" .Release.Name $name }}
{{- if .Values.fullnameOverride }}
{{- $full = .Values.fullnameOverride }}
{{- else if and .Chart.IsRoot (contains $name .Release.Name) }}
{{- $full = .Release.Name }}
{{- end }}
{{- include "chart.short" (dict "name" $full "limit" 52) }}
{{- end }}

{{- define "chart.selectorLabels" -}}
app.kubernetes.io/name: {{ include "chart.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: {{ include "chart.component" . }}
{{- end }}

{{- define "chart.labels" -}}
{{ include "chart.selectorLabels" . }}
app.kubernetes.io/part-of: fedround
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ include "chart.short" (dict "name" (printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_") "limit" 63) }}
{{- end }}

{{/* A value as text: `toYaml` would write a large number as 1e+06. */}}
{{- define "chart.text" -}}
{{- if kindIs "string" . }}{{ . }}{{ else }}{{ toJson . }}{{ end }}
{{- end }}

{{/* A map of texts, such as labels: `--set` makes numbers and booleans of some, which Kubernetes refuses. */}}
{{- define "chart.texts" -}}
{{- $texts := dict }}
{{- range $key, $value := . }}{{ $_ := set $texts $key (include "chart.text" $value) }}{{ end }}
{{- toYaml $texts }}
{{- end }}

{{/* The metadata of an object: `name` if it is not the usual one, its own `labels` and `annotations`, and the common ones. */}}
{{- define "chart.metadata" -}}
name: {{ default (include "chart.fullname" .root) .name }}
labels: {{- include "chart.texts" (merge (include "chart.labels" .root | fromYaml) (default dict .labels) .root.Values.commonLabels) | nindent 2 }}
{{- with merge dict (default dict .annotations) .root.Values.commonAnnotations }}
annotations: {{- include "chart.texts" . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The metadata of the pods. Their labels lack the chart's version: a new version alone does not replace pods. */}}
{{- define "chart.podMetadata" -}}
labels: {{- include "chart.texts" (merge (include "chart.selectorLabels" . | fromYaml) (dict "app.kubernetes.io/part-of" "fedround") .Values.podLabels .Values.commonLabels) | nindent 2 }}
annotations:
  checksum/config: {{ pick (include (print $.Template.BasePath "/configmap.yaml") . | fromYaml) "data" | toJson | sha256sum }}
  {{- with merge dict .Values.podAnnotations .Values.commonAnnotations }}{{ include "chart.texts" . | nindent 2 }}{{ end }}
{{- end }}

{{- define "chart.image" -}}
{{- $name := .Values.image.repository }}
{{- with .Values.global.imageRegistry | default .Values.image.registry }}{{ $name = printf "%s/%s" (trimSuffix "/" .) $name }}{{ end }}
{{- if .Values.image.digest }}{{ $name }}@{{ .Values.image.digest }}{{ else }}{{ $name }}:{{ include "chart.text" .Values.image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}

{{- define "chart.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}{{ default (include "chart.fullname" .) .Values.serviceAccount.name }}{{ else }}{{ default "default" .Values.serviceAccount.name }}{{ end }}
{{- end }}

{{/* Where pods run and what pulls their images. The pods of `helm test` have the same. */}}
{{- define "chart.placement" -}}
{{- $secrets := list }}
{{- range concat .Values.global.imagePullSecrets .Values.imagePullSecrets }}
{{- $secrets = append $secrets (kindIs "string" . | ternary (dict "name" .) .) }}
{{- end }}
{{- with uniq $secrets }}
imagePullSecrets: {{ toJson . }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector: {{- include "chart.texts" . | nindent 2 }}
{{- end }}
{{- range $key := list "priorityClassName" "runtimeClassName" "tolerations" "affinity" "dnsConfig" }}
{{- with index $.Values $key }}
{{ $key }}: {{ toJson . }}
{{- end }}
{{- end }}
{{- end }}

{{/* Additional attributes in OTEL_RESOURCE_ATTRIBUTES, where a comma separates attributes. */}}
{{- define "chart.resourceAttributes" -}}
{{- range $name, $value := . }},{{ $name }}={{ include "chart.text" $value | replace "," "%2C" }}{{ end }}
{{- end }}

{{/* A list as YAML in which the last entry with a `key` replaces the earlier ones: a user's entry that of the chart.
     The value of a variable becomes a text. */}}
{{- define "chart.override" -}}
{{- $key := .key }}
{{- $seen := list }}
{{- $kept := list }}
{{- range reverse (concat (.ours | fromYamlArray) .theirs) }}
{{- if not (has (get . $key) $seen) }}
{{- if not (kindIs "invalid" .value) }}{{ $_ := set . "value" (include "chart.text" .value) }}{{ end }}
{{- $seen = append $seen (get . $key) }}
{{- $kept = prepend $kept . }}
{{- end }}
{{- end }}
{{- toYaml $kept }}
{{- end }}

{{/* The port in a URL. */}}
{{- define "chart.port" -}}
{{- $url := urlParse . }}
{{- regexFind ":[0-9]+$" $url.host | trimPrefix ":" | default (ternary "443" "80" (eq $url.scheme "https")) }}
{{- end }}

{{/* Complete the values, then replace templates in them by what they render. Every file with objects includes this first.
     `--reuse-values` brings the values of an older release, which lack those that are new: they get their defaults. */}}
{{- define "chart.prepare" -}}
{{- if not (hasKey .Values "prepared") }}
{{- include "chart.complete" (dict "values" .Values "defaults" (include "chart.defaults" . | fromYaml)) }}
{{- range $path := include "chart.templated" . | fromYamlArray }}
{{- $within := $.Values }}
{{- $keys := splitList "." $path }}
{{- range initial $keys }}{{ $within = get $within . }}{{ end }}
{{- $value := get $within (last $keys) }}
{{- if kindIs "string" $value }}
{{- $_ := set $within (last $keys) (tpl $value $) }}
{{- else }}
{{- $_ := set $within (last $keys) (get (tpl (toYaml (dict "value" $value)) $ | fromYaml) "value") }}
{{- end }}
{{- end }}
{{- $_ := set .Values "prepared" true }}
{{- include "chart.check" . }}
{{- end }}
{{- end }}

{{- define "chart.complete" -}}
{{- $values := .values }}
{{- range $key, $default := .defaults }}
{{- $value := get $values $key }}
{{- if not (hasKey $values $key) }}
{{- $_ := set $values $key $default }}
{{- else if and (kindIs "map" $value) (kindIs "map" $default) }}
{{- include "chart.complete" (dict "values" $value "defaults" $default) }}
{{- end }}
{{- end }}
{{- end }}

{{/* Fail if this release has volume claims under another name only: its pods would start with empty volumes.
     `templates`: the names of the StatefulSet's claim templates. `helm template` and Argo CD cannot look, and never fail here. */}}
{{- define "chart.keepClaims" -}}
{{- if not .root.Values.allowRename }}
{{- $name := include "chart.fullname" .root }}
{{- $labels := include "chart.selectorLabels" .root | fromYaml }}
{{- if .root.Chart.IsRoot }}{{ $labels = omit $labels "app.kubernetes.io/name" }}{{ end }}
{{- $claims := dict }}
{{- range (lookup "v1" "PersistentVolumeClaim" .root.Release.Namespace "").items }}
{{- $claim := .metadata.name }}
{{- $found := default dict .metadata.labels }}
{{- if eq (merge dict $labels $found | toJson) (toJson $found) }}
{{- range $.templates }}
{{- $owner := regexReplaceAll (printf "^%s-(.+)-[0-9]+$" .) $claim "${1}" }}
{{- if ne $owner $claim }}{{ $_ := set $claims $owner $claim }}{{ end }}
{{- end }}
{{- end }}
{{- end }}
{{- if and $claims (not (hasKey $claims $name)) }}
{{- $old := keys $claims | sortAlpha | first }}
{{- fail (printf "the name of this release's objects changes from %q to %q, and the volume claim %s does not follow it: set %sfullnameOverride=%s to keep the name, or allowRename=true to start with empty volumes" $old $name (get $claims $old) .hint $old) }}
{{- end }}
{{- end }}
{{- end }}

{{/* What both charts check. */}}
{{- define "chart.checkCommon" -}}
{{- if not .Values.enabled }}{{ fail "enabled=false has no effect: no condition of a parent chart reads it" }}{{ end }}
{{- include "chart.checkUrl" (dict "name" "otel.endpoint" "url" .Values.otel.endpoint) }}
{{- end }}

{{/* A template may have rendered something else than a URL, which the schema cannot know. */}}
{{- define "chart.checkUrl" -}}
{{- if not (regexMatch "^(https?://[^ ]+)?$" .url) }}{{ fail (printf "%s: %q is not a URL such as http://host:port" .name .url) }}{{ end }}
{{- end }}
