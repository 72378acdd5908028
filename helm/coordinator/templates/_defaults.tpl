{{/* Made by tools/charts.py from values.yaml. */}}

{{- define "coordinator.defaults" }}
enabled: true
global:
  imageRegistry: ''
  imagePullSecrets: []
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
rounds: 100
minClients: 3
coordinator:
  settings: {}
aggregator:
  url: ''
  settings: {}
token:
  existingSecret: ''
  key: token
  tokensKey: ''
opsToken:
  existingSecret: ''
  key: ops-token
tls:
  existingSecret: ''
  clientCA:
    existingSecret: ''
    key: ca.crt
  certificate:
    enabled: false
    issuerRef: {}
    dnsNames: []
    duration: 2160h
    renewBefore: 720h
persistence:
  enabled: true
  size: 8Gi
  storageClass: ''
  accessModes:
  - ReadWriteOnce
  existingClaim: ''
  annotations: {}
  retentionPolicy:
    whenDeleted: Retain
    whenScaled: Retain
otel:
  endpoint: ''
  resourceAttributes: {}
service:
  type: ClusterIP
  annotations: {}
  loadBalancerSourceRanges: []
ingress:
  enabled: false
  className: ''
  coordinatorHost: ''
  aggregatorHost: ''
  tlsSecret: ''
httpRoute:
  enabled: false
  parentRefs: []
  coordinatorHost: ''
  aggregatorHost: ''
  timeouts:
    coordinator: 60s
    aggregator: 0s
extraEnv: []
extraEnvFrom: []
extraVolumes: []
extraVolumeMounts: []
initContainers: []
sidecars: []
extraObjects: []
podAnnotations: {}
podLabels: {}
startupSeconds: 60
livenessProbe:
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  periodSeconds: 2
  timeoutSeconds: 2
  failureThreshold: 3
serviceAccount:
  create: true
  name: ''
  annotations: {}
nodeSelector: {}
tolerations: []
affinity: {}
priorityClassName: ''
runtimeClassName: ''
dnsConfig: {}
networkPolicy:
  enabled: false
  ingressFrom: []
  opsFrom: []
  egress: []
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
prometheusRule:
  enabled: false
  labels: {}
  runbookBase: ''
dashboards:
  enabled: false
  annotations: {}
{{- end }}

{{- define "coordinator.templated" }}
- fullnameOverride
- commonLabels
- coordinator.settings
- aggregator.url
- aggregator.settings
- token.existingSecret
- opsToken.existingSecret
- tls.existingSecret
- tls.clientCA.existingSecret
- tls.certificate.issuerRef
- tls.certificate.dnsNames
- persistence.storageClass
- persistence.existingClaim
- otel.endpoint
- otel.resourceAttributes
- service.annotations
- ingress.annotations
- ingress.coordinatorHost
- ingress.aggregatorHost
- ingress.tlsSecret
- httpRoute.parentRefs
- httpRoute.coordinatorHost
- httpRoute.aggregatorHost
- extraEnv
- extraEnvFrom
- extraVolumes
- extraVolumeMounts
- initContainers
- sidecars
- podLabels
- serviceAccount.name
- serviceAccount.annotations
- nodeSelector
- affinity
- networkPolicy.ingressFrom
- networkPolicy.opsFrom
- networkPolicy.egress
- podMonitor.labels
- prometheusRule.labels
{{- end }}
