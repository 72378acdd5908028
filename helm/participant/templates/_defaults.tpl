{{/* Made by tools/charts.py from values.yaml. */}}

{{- define "participant.defaults" }}
enabled: true
global:
  imageRegistry: ''
  imagePullSecrets: []
replicaCount: 3
kind: StatefulSet
image:
  registry: ''
  repository: fedround
  tag: ''
  digest: ''
  pullPolicy: IfNotPresent
imagePullSecrets: []
nameOverride: ''
fullnameOverride: ''
allowRename: false
commonLabels: {}
commonAnnotations: {}
coordinator:
  url: ''
class: fedround.demo:HousePrices
flower: ''
options: {}
shards: 0
drainSeconds: 30
afterFinish: wait
settings: {}
token:
  existingSecret: ''
  key: token
opsToken:
  existingSecret: ''
  key: ops-token
tls:
  existingSecret: ''
  ca:
    existingSecret: ''
    key: ca.crt
otel:
  endpoint: ''
  resourceAttributes: {}
extraEnv: []
extraEnvFrom: []
extraVolumes: []
extraVolumeMounts: []
volumeClaimTemplates: []
initContainers: []
sidecars: []
extraObjects: []
podAnnotations: {}
podLabels: {}
tmpSizeLimit: 256Mi
startupSeconds: 300
livenessProbe:
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  periodSeconds: 2
  timeoutSeconds: 2
  failureThreshold: 3
updateStrategy:
  type: RollingUpdate
serviceAccount:
  create: true
  name: ''
  annotations: {}
nodeSelector: {}
tolerations: []
affinity: {}
topologySpreadConstraints: []
priorityClassName: ''
runtimeClassName: ''
dnsConfig: {}
autoscaling:
  enabled: false
  minReplicas: 3
  maxReplicas: 30
  targetCPUUtilizationPercentage: 80
  targetMemoryUtilizationPercentage: 0
  metrics: []
  behavior:
    scaleDown:
      stabilizationWindowSeconds: 300
podDisruptionBudget:
  enabled: false
  maxUnavailable: 1
networkPolicy:
  enabled: false
  aggregatorPort: 8082
  egress: []
  ingressFrom: []
podMonitor:
  enabled: false
  labels: {}
  interval: 30s
  scrapeTimeout: 10s
  sampleLimit: 2000
  tlsConfig:
    insecureSkipVerify: true
  relabelings: []
  metricRelabelings: []
{{- end }}

{{- define "participant.templated" }}
- fullnameOverride
- commonLabels
- coordinator.url
- settings
- token.existingSecret
- opsToken.existingSecret
- tls.existingSecret
- tls.ca.existingSecret
- otel.endpoint
- otel.resourceAttributes
- extraEnv
- extraEnvFrom
- extraVolumes
- extraVolumeMounts
- volumeClaimTemplates
- initContainers
- sidecars
- podLabels
- serviceAccount.name
- serviceAccount.annotations
- nodeSelector
- affinity
- networkPolicy.egress
- networkPolicy.ingressFrom
- podMonitor.labels
{{- end }}
