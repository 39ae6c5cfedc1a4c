package validate

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	apps "k8s.io/api/apps/v1"
	batch "k8s.io/api/batch/v1"
	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	policy "k8s.io/api/policy/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

// kinds makes an empty object of every kind that the files may contain.
var kinds = map[string]func() any{
	"v1/ConfigMap":                            func() any { return new(core.ConfigMap) },
	"v1/Namespace":                            func() any { return new(core.Namespace) },
	"v1/Secret":                               func() any { return new(core.Secret) },
	"v1/Service":                              func() any { return new(core.Service) },
	"v1/ServiceAccount":                       func() any { return new(core.ServiceAccount) },
	"apps/v1/Deployment":                      func() any { return new(apps.Deployment) },
	"apps/v1/StatefulSet":                     func() any { return new(apps.StatefulSet) },
	"batch/v1/Job":                            func() any { return new(batch.Job) },
	"networking.k8s.io/v1/NetworkPolicy":      func() any { return new(networking.NetworkPolicy) },
	"policy/v1/PodDisruptionBudget":           func() any { return new(policy.PodDisruptionBudget) },
	"monitoring.coreos.com/v1/ServiceMonitor": func() any { return new(monitoring.ServiceMonitor) },
}

// secrets are those that example/ takes from kvtier secure and the operator.
var secrets = []string{
	"ca.pem", "server.pem", "server-key.pem", "users.acl", "worker-redis.url", "worker-control-redis.url", "coordinator-redis.url",
	"coordinator-control-redis.url", "worker", "coordinator", "cluster-secret",
}

// build returns what kubectl apply -k would send, decoded.
func build(t *testing.T, name string) map[string]any {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("..")); err != nil {
		t.Fatal(err)
	}
	for _, s := range secrets {
		path := filepath.Join(dir, "example", "secrets", s)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	resources, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	objects := map[string]any{}
	for _, r := range resources.Resources() {
		text, err := r.AsYAML()
		if err != nil {
			t.Fatal(err)
		}
		kind := strings.TrimPrefix(r.GetGvk().Group+"/"+r.GetGvk().Version+"/"+r.GetKind(), "/")
		empty, ok := kinds[kind]
		if !ok {
			t.Errorf("%s %s: a kind that this test does not know", kind, r.GetName())
			continue
		}
		object := empty()
		if err := yaml.UnmarshalStrict(text, object); err != nil {
			t.Errorf("%s %s: %v", kind, r.GetName(), err)
		}
		if ns := r.GetNamespace(); ns != "kvtier" && r.GetKind() != "Namespace" {
			t.Errorf("%s %s: namespace %q", kind, r.GetName(), ns)
		}
		objects[r.GetKind()+"/"+r.GetName()] = object
	}
	return objects
}

func TestKustomizationsAreValid(t *testing.T) {
	for name, want := range map[string][]string{
		"base": {"Deployment/worker", "Deployment/coordinator", "PodDisruptionBudget/worker", "PodDisruptionBudget/coordinator", "NetworkPolicy/deny-all",
			"Service/worker", "Service/coordinator", "Namespace/kvtier"},
		"monitoring": {"Deployment/worker", "ServiceMonitor/kvtier-worker", "ServiceMonitor/kvtier-coordinator"},
		"example":    {"Deployment/worker", "Deployment/redis-data", "StatefulSet/redis-control", "Job/warmup"},
	} {
		t.Run(name, func(t *testing.T) {
			objects := build(t, name)
			for _, w := range want {
				if objects[w] == nil {
					t.Errorf("no %s among %v", w, slices.Sorted(maps.Keys(objects)))
				}
			}
			pods := map[string]core.PodTemplateSpec{}
			for key, o := range objects {
				switch o := o.(type) {
				case *apps.Deployment:
					pods[key] = o.Spec.Template
					selects(t, key, o.Spec.Selector, o.Spec.Template)
				case *apps.StatefulSet:
					pods[key] = o.Spec.Template
					selects(t, key, o.Spec.Selector, o.Spec.Template)
				case *batch.Job:
					pods[key] = o.Spec.Template
				}
			}
			for key, p := range pods {
				restricted(t, key, p.Spec)
				mounted(t, key, p.Spec)
			}
			reach(t, objects, pods)
		})
	}
}

func selects(t *testing.T, key string, s *meta.LabelSelector, p core.PodTemplateSpec) {
	t.Helper()
	if sel, err := meta.LabelSelectorAsSelector(s); err != nil || sel.Empty() || !sel.Matches(labels.Set(p.Labels)) {
		t.Errorf("%s: the selector %v does not select its own pods %v (%v)", key, s, p.Labels, err)
	}
}

// restricted is what the namespace enforces (pod security standard restricted), and limits besides.
func restricted(t *testing.T, key string, p core.PodSpec) {
	t.Helper()
	bad := func(wrong bool, what string) {
		t.Helper()
		if wrong {
			t.Errorf("%s: %s", key, what)
		}
	}
	s := p.SecurityContext
	if s == nil {
		s = &core.PodSecurityContext{}
	}
	bad(s.RunAsNonRoot == nil || !*s.RunAsNonRoot || s.RunAsUser == nil || *s.RunAsUser == 0, "may run as root")
	bad(s.SeccompProfile == nil || s.SeccompProfile.Type != core.SeccompProfileTypeRuntimeDefault, "no seccomp profile")
	bad(p.AutomountServiceAccountToken == nil || *p.AutomountServiceAccountToken, "mounts a token of the API that it does not need")
	bad(p.EnableServiceLinks == nil || *p.EnableServiceLinks, "service links put variables such as KVTIER_… into its environment")
	for _, c := range p.Containers {
		s := c.SecurityContext
		if s == nil {
			s = &core.SecurityContext{}
		}
		bad(s.ReadOnlyRootFilesystem == nil || !*s.ReadOnlyRootFilesystem, "writable root")
		bad(s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation, "may gain privileges")
		bad(s.Capabilities == nil || !slices.Contains(s.Capabilities.Drop, "ALL"), "keeps capabilities")
		bad(c.Resources.Limits.Memory().IsZero() || c.Resources.Requests.Cpu().IsZero(), "no limits or requests")
		bad(len(c.Ports) > 0 && c.ReadinessProbe == nil, "no readiness probe")
		bad(c.Image == "kvtier", "the image has no registry")
	}
}

// mounted checks that what is mounted is a volume, and that what the environment points to is mounted.
func mounted(t *testing.T, key string, p core.PodSpec) {
	t.Helper()
	for _, c := range p.Containers {
		for _, m := range c.VolumeMounts {
			if !slices.ContainsFunc(p.Volumes, func(v core.Volume) bool { return v.Name == m.Name }) && !strings.HasPrefix(key, "StatefulSet/") {
				t.Errorf("%s: no volume %s", key, m.Name)
			}
		}
		for _, e := range c.Env {
			if !strings.HasPrefix(e.Value, "/") {
				continue
			}
			i := slices.IndexFunc(c.VolumeMounts, func(m core.VolumeMount) bool { return strings.HasPrefix(e.Value, m.MountPath+"/") })
			if i < 0 {
				t.Errorf("%s: %s=%s is on no volume", key, e.Name, e.Value)
				continue
			}
			for _, v := range p.Volumes {
				if v.Name == c.VolumeMounts[i].Name && v.Secret != nil && len(v.Secret.Items) > 0 &&
					!slices.ContainsFunc(v.Secret.Items, func(k core.KeyToPath) bool { return k.Path == filepath.Base(e.Value) }) {
					t.Errorf("%s: %s=%s is not in the volume", key, e.Name, e.Value)
				}
			}
		}
	}
}

// reach checks that services, budgets, monitors and policies select something.
func reach(t *testing.T, objects map[string]any, pods map[string]core.PodTemplateSpec) {
	t.Helper()
	any := func(s *meta.LabelSelector) bool {
		sel, err := meta.LabelSelectorAsSelector(s)
		if err != nil {
			t.Error(err)
		}
		for _, p := range pods {
			if sel.Matches(labels.Set(p.Labels)) {
				return true
			}
		}
		return false
	}
	for key, o := range objects {
		switch o := o.(type) {
		case *core.Service:
			if !any(&meta.LabelSelector{MatchLabels: o.Spec.Selector}) {
				t.Errorf("%s selects no pod", key)
			}
		case *policy.PodDisruptionBudget:
			if !any(o.Spec.Selector) {
				t.Errorf("%s selects no pod", key)
			}
		case *networking.NetworkPolicy:
			if !any(&o.Spec.PodSelector) {
				t.Errorf("%s selects no pod", key)
			}
		case *monitoring.ServiceMonitor:
			sel, err := meta.LabelSelectorAsSelector(&o.Spec.Selector)
			found := false
			for _, s := range objects {
				if s, ok := s.(*core.Service); ok && err == nil && sel.Matches(labels.Set(s.Labels)) {
					found = slices.ContainsFunc(s.Spec.Ports, func(p core.ServicePort) bool { return p.Name == o.Spec.Endpoints[0].Port })
				}
			}
			if !found {
				t.Errorf("%s selects no port of a service (%v)", key, err)
			}
		}
	}
}

// kustomize reads no file outside its directory, so that example/ has copies.
func TestCopiesAreEqual(t *testing.T) {
	for copied, original := range map[string]string{"data.conf": "redis/data.conf", "control.conf": "redis/control.conf", "prompts.txt": "warmup/prompts.txt"} {
		a, errA := os.ReadFile(filepath.Join("..", "example", copied))
		b, errB := os.ReadFile(filepath.Join("..", "..", original))
		if errA != nil || errB != nil || string(a) != string(b) {
			t.Errorf("example/%s is not deploy/%s: copy it (%v, %v)", copied, original, errA, errB)
		}
	}
}

// A check that accepts everything proves nothing.
func TestMistakesAreFound(t *testing.T) {
	for name, text := range map[string]string{
		"misspelt":    "spec: {replica: 2}",
		"wrong place": "replicas: 2",
		"wrong type":  "spec: {replicas: two}",
	} {
		if yaml.UnmarshalStrict([]byte(text), new(apps.Deployment)) == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
