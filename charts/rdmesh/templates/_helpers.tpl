{{- define "rdmesh.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "rdmesh.labels" -}}
{{ include "rdmesh.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "rdmesh.selector" -}}
app.kubernetes.io/name: rdmesh
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "rdmesh.excluded" -}}
{{- $all := list "kube-system" "kube-public" "kube-node-lease" .Release.Namespace -}}
{{- concat $all .Values.injector.excludeNamespaces | uniq | toYaml }}
{{- end }}

{{- define "rdmesh.injectorConfig" -}}
{{- $own := dict
  "log" (dict "level" .Values.injector.logLevel "format" .Values.logFormat)
  "node" (dict "pods_dir" .Values.node.podsDir)
  "injector" (dict
    "listen" "0.0.0.0:15793"
    "admin" "0.0.0.0:15792"
    "image" (include "rdmesh.image" .)
    "image_pull_policy" .Values.image.pullPolicy
    "native_sidecar" .Values.sidecar.native
    "pod_sysctls" .Values.sidecar.podSysctls
    "proxy_cpu" .Values.sidecar.cpu
    "proxy_cpu_limit" .Values.sidecar.cpuLimit
    "proxy_memory" .Values.sidecar.memory
    "proxy_memory_limit" .Values.sidecar.memoryLimit
    "proxy_log_level" .Values.sidecar.logLevel
    "exclude_namespaces" (concat (list .Release.Namespace) .Values.injector.excludeNamespaces | uniq)
    "template" "/etc/rdmesh/template.yaml"
    "authority" (dict
      "namespace" .Release.Namespace
      "secret" "rdmesh-ca"
      "service" "rdmesh-injector"
      "webhook" "rdmesh-injector"
      "node_account" "rdmesh-node"
      "ca_lifetime_s" (int64 .Values.certificates.lifetimes.ca)
      "serving_lifetime_s" (int64 .Values.certificates.lifetimes.serving)
      "node_lifetime_s" (int64 .Values.certificates.lifetimes.node))) -}}
{{- if eq .Values.certificates.webhook "certManager" }}
{{- $_ := set $own.injector "cert" "/run/rdmesh-serving/tls.crt" }}
{{- $_ := set $own.injector "key" "/run/rdmesh-serving/tls.key" }}
{{- end }}
{{- mergeOverwrite $own (deepCopy .Values.sidecar.config) | toYaml }}
{{- end }}

{{- define "rdmesh.nodeConfig" -}}
{{- $own := dict
  "log" (dict "level" .Values.node.logLevel "format" .Values.logFormat)
  "node" (dict
    "admin" "0.0.0.0:15790"
    "pods_dir" .Values.node.podsDir
    "tls" (dict "ca" "/run/rdmesh-tls/ca.crt" "cert" "/run/rdmesh-tls/tls.crt" "key" "/run/rdmesh-tls/tls.key")
    "directory" (dict "kubernetes" dict)) -}}
{{- mergeOverwrite $own (dict "node" (deepCopy .Values.node.config)) | toYaml }}
{{- end }}

{{- /* The CA of the webhook's certificate: where node proxies' pods find it. */ -}}
{{- define "rdmesh.servingCaSecret" -}}
{{ if eq .Values.certificates.webhook "certManager" }}rdmesh-injector-tls{{ else }}rdmesh-ca{{ end }}
{{- end }}

{{- define "rdmesh.hardened" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}
