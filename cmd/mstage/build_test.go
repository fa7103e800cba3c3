package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/mstage/mstage/engine"
	"github.com/mstage/mstage/engine/worker"
	"github.com/mstage/mstage/storage"
)

func TestOutputsAreReadWithAbsolutePaths(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	c := cliWith(nil)
	outputs, err := c.parseOutputs([]string{"type=image", "type=oci,dest=x.tar", "rootfs", "-"})
	if err != nil || len(outputs) != 4 {
		t.Fatalf("got %+v, %v, want four outputs", outputs, err)
	}
	for i, want := range []string{"", filepath.Join(dir, "x.tar"), filepath.Join(dir, "rootfs"), "-"} {
		if outputs[i].Dest != want {
			t.Errorf("output %d: got %q, want %q", i, outputs[i].Dest, want)
		}
	}
	for value, message := range map[string]string{"type=zip": "unknown type", "type=oci,dset=x": "unknown key", "": "not a list"} {
		_, err := c.parseOutputs([]string{value})
		wantUsage(t, err, message)
	}
	_, err = c.parseOutputs([]string{"-", "type=docker,dest=-"})
	wantUsage(t, err, "another output takes standard output")
}

func TestOptionsOfABuildAreChecked(t *testing.T) {
	c := cliWith(nil)
	for message, f := range map[string]*buildFlags{
		"--jobs -1": {jobs: -1}, "lower case": {names: []string{"Upper"}}, "--add-host": {hosts: []string{"x"}},
		"--secret": {secrets: []string{"x"}}, "none.pem": {registryFlags: registryFlags{caBundle: "none.pem"}}, "unknown type": {outputs: []string{"type=x"}},
	} {
		var r engine.Request
		wantUsage(t, c.addBuildOptions(&r, f), message)
	}
	bundle := write(t, filepath.Join(t.TempDir(), "ca.pem"), "x")
	t.Chdir(filepath.Dir(bundle))
	var r engine.Request
	if err := c.addBuildOptions(&r, &buildFlags{names: []string{"x", "localhost/y:1"}, jobs: 3, noCache: true, registryFlags: registryFlags{caBundle: "ca.pem"}}); err != nil {
		t.Fatal(err)
	}
	if r.CABundle != bundle || r.Runs != 3 || !r.NoCache || len(r.Names) != 2 || r.Names[0] != "docker.io/library/x:latest" {
		t.Errorf("got %+v", r)
	}
}

func TestTheResultIsReported(t *testing.T) {
	dir := t.TempDir()
	id := storage.DigestBytes([]byte("image"))
	sealed := &storage.SealedImage{ConfigDigest: storage.DigestBytes([]byte("config"))}
	f := &buildFlags{iidFile: filepath.Join(dir, "iid"), metadataFile: filepath.Join(dir, "meta")}
	cases := map[string]struct {
		res    engine.BuildResult
		stdout string
		meta   map[string]string
	}{
		"an image of the store": {engine.BuildResult{Image: storage.Image{ID: id}, Names: []string{"a:1", "b:2"}}, string(id) + "\n", map[string]string{"mstage.image.id": string(id), "image.name": "a:1,b:2"}},
		"a sealed image": {
			engine.BuildResult{Image: storage.Image{ID: id, Sealed: sealed}, Exports: []worker.Export{{Type: "oci", Dest: "/x", Digest: "sha256:m"}}},
			string(id) + "\n",
			map[string]string{"mstage.image.id": string(id), "containerimage.digest": "sha256:m", "containerimage.config.digest": string(sealed.ConfigDigest)},
		},
		"an output to stdout keeps the ID out of it": {engine.BuildResult{Image: storage.Image{ID: id}, Exports: []worker.Export{{Type: "tar", Dest: "-"}}}, "", map[string]string{"mstage.image.id": string(id)}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			program := cliWith(nil)
			program.stdout = &out
			if err := program.report(f, &c.res); err != nil {
				t.Fatal(err)
			}
			if out.String() != c.stdout {
				t.Errorf("got %q on stdout, want %q", out.String(), c.stdout)
			}
			if b, err := os.ReadFile(f.iidFile); err != nil || string(b) != string(id) {
				t.Errorf("--iidfile: got %q, %v, want the ID without a newline", b, err)
			}
			b, err := os.ReadFile(f.metadataFile)
			if err != nil {
				t.Fatal(err)
			}
			got := map[string]string{}
			if err := json.Unmarshal(b, &got); err != nil || len(got) != len(c.meta) {
				t.Errorf("--metadata-file: got %s, %v, want %v", b, err, c.meta)
			}
			for k, v := range c.meta {
				if got[k] != v {
					t.Errorf("%s: got %q, want %q", k, got[k], v)
				}
			}
		})
	}
}

func TestAFileIsWrittenWholeOrNotAtAll(t *testing.T) {
	dir := t.TempDir()
	if err := writeFile(filepath.Join(dir, "none", "x"), nil); err == nil {
		t.Error("a directory that is not there: got no error")
	}
	if err := os.Mkdir(filepath.Join(dir, "taken"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := writeFile(filepath.Join(dir, "taken"), []byte("x")); err == nil {
		t.Error("a directory of that name: got no error")
	}
	name := filepath.Join(dir, "file")
	for _, data := range []string{"old", "new"} {
		if err := writeFile(name, []byte(data)); err != nil {
			t.Fatal(err)
		}
	}
	if fi, err := os.Stat(name); err != nil || fi.Mode().Perm() != 0o644 || fi.Size() != 3 {
		t.Errorf("got %v, %v, want a file of mode 644", fi, err)
	}
	if list, err := os.ReadDir(dir); err != nil || len(list) != 2 {
		t.Errorf("got %v, %v, want no temporary files", list, err)
	}
}

func TestEveryRefusedFlagOfDockerIsRefusedByName(t *testing.T) {
	for name := range refusedFlags {
		cmd := newBuildCommand(cliWith(nil))
		if err := cmd.ParseFlags([]string{"--" + name + "=x"}); err != nil {
			t.Fatal(err)
		}
		wantUsage(t, checkRefused(cmd), "--"+name+" is not supported yet")
	}
}
