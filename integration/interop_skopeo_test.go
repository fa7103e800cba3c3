package integration

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
)

// interopOutputs are the outputs that hold an image, with skopeo's name for each.
var interopOutputs = []struct{ name, output, skopeo string }{
	{"an OCI archive", "type=oci,dest=oci.tar", "oci-archive:oci.tar"},
	{"an OCI layout", "type=oci,dest=oci,tar=false", "oci:oci"},
	{"a docker archive", "type=docker,dest=docker.tar", "docker-archive:docker.tar"},
}

func TestSkopeoReadsEveryOutput(t *testing.T) {
	skopeo, err := exec.LookPath("skopeo")
	if err != nil {
		t.Skipf("no skopeo: %v", err)
	}
	s := newBusyboxStore(t)
	text, err := os.ReadFile("testdata/interop/Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	s.write("ctx/Dockerfile", string(text))
	args := []string{"build", "-q", "-t", "interop:1"}
	for _, o := range interopOutputs {
		args = append(args, "-o", o.output)
	}
	s.mustRun(append(args, "ctx")...)
	var layers []string
	for _, o := range interopOutputs {
		t.Run(o.name, func(t *testing.T) {
			cmd := exec.Command(skopeo, "inspect", o.skopeo)
			cmd.Dir = s.dir
			out, err := cmd.Output()
			if err != nil {
				t.Fatalf("skopeo inspect %s: %v\n%s", o.skopeo, err, stderrOf(err))
			}
			var got struct {
				Os, Architecture string
				Labels           map[string]string
				Env, Layers      []string
			}
			if err := json.Unmarshal(out, &got); err != nil {
				t.Fatal(err)
			}
			if got.Os != "linux" || got.Labels["a"] != "b" || !slices.Contains(got.Env, "GREETING=hello") || len(got.Layers) < 4 {
				t.Errorf("skopeo says %s", out)
			}
			layers = append(layers, copiedLayers(t, skopeo, s.dir, o.skopeo))
		})
	}
	if len(slices.Compact(layers)) > 1 {
		t.Errorf("the outputs have different layers:\n%q", layers)
	}
}

// copiedLayers lets skopeo read every byte, checking all digests, and returns
// the uncompressed layers' digests.
func copiedLayers(t testing.TB, skopeo, dir, from string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "copy")
	cmd := exec.Command(skopeo, "--insecure-policy", "copy", from, "oci:"+to)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("skopeo copy %s: %v\n%s", from, err, out)
	}
	cmd = exec.Command(skopeo, "inspect", "--config", from)
	cmd.Dir = dir
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("skopeo inspect --config %s: %v\n%s", from, err, stderrOf(err))
	}
	var config struct {
		RootFS struct {
			DiffIDs []string `json:"diff_ids"`
		}
	}
	if err := json.Unmarshal(out, &config); err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(config.RootFS.DiffIDs)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// stderrOf is what a command of which only the output was taken complained of.
func stderrOf(err error) string {
	if exit, ok := err.(*exec.ExitError); ok { //nolint:errorlint // exec returns it unwrapped
		return string(exit.Stderr)
	}
	return ""
}
