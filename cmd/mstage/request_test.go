package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mstage/mstage/engine"
	"github.com/mstage/mstage/engine/plan"
	"github.com/mstage/mstage/engine/worker"
)

// cliWith is the program with an environment of its own.
func cliWith(env map[string]string) *cli {
	return &cli{stdin: strings.NewReader(""), stdout: &bytes.Buffer{}, stderr: &bytes.Buffer{}, lookupenv: func(k string) (string, bool) { v, ok := env[k]; return v, ok }}
}

// wantUsage holds an error to be about the command line.
func wantUsage(t *testing.T, err error, message string) {
	t.Helper()
	usage, ok := errors.AsType[*usageError](err)
	if !ok || !strings.Contains(usage.message, message) {
		t.Errorf("got %v, want a usage error with %q", err, message)
	}
}

func write(t *testing.T, name, data string) string {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(data), 0o600)); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestBuildArgumentsComeFromFlagsAndTheEnvironment(t *testing.T) {
	home := t.TempDir()
	write(t, filepath.Join(home, ".docker/config.json"), `{"proxies":{"default":{"httpProxy":"http://docker","noProxy":"local"},"tcp://other":{"ftpProxy":"x"}}}`)
	cases := map[string]struct {
		env   map[string]string
		flags []string
		want  map[string]string
	}{
		"a value":                                   {nil, []string{"A=1", "B=x=y", "C="}, map[string]string{"A": "1", "B": "x=y", "C": ""}},
		"the last of a name":                        {nil, []string{"A=1", "A=2"}, map[string]string{"A": "2"}},
		"a name alone is the environment's":         {map[string]string{"A": "env"}, []string{"A", "UNSET"}, map[string]string{"A": "env"}},
		"proxies of the environment":                {map[string]string{"HTTP_PROXY": "u", "no_proxy": "l", "OTHER": "x"}, nil, map[string]string{"HTTP_PROXY": "u", "no_proxy": "l"}},
		"proxies of docker's config":                {map[string]string{"HOME": home}, nil, map[string]string{"HTTP_PROXY": "http://docker", "NO_PROXY": "local"}},
		"docker's config at its own place":          {map[string]string{"DOCKER_CONFIG": filepath.Join(home, ".docker")}, nil, map[string]string{"HTTP_PROXY": "http://docker", "NO_PROXY": "local"}},
		"the environment over docker's config":      {map[string]string{"HOME": home, "HTTP_PROXY": "env"}, nil, map[string]string{"HTTP_PROXY": "env", "NO_PROXY": "local"}},
		"a flag over all, whatever its case":        {map[string]string{"HOME": home, "http_proxy": "env"}, []string{"HTTP_PROXY=flag"}, map[string]string{"HTTP_PROXY": "flag", "NO_PROXY": "local"}},
		"an empty flag switches a proxy off":        {map[string]string{"http_proxy": "env", "HTTP_PROXY": "env"}, []string{"http_proxy="}, map[string]string{"http_proxy": ""}},
		"no home has no config":                     {map[string]string{"HOME": "/nonexistent"}, nil, map[string]string{}},
		"a home that is no directory has no config": {map[string]string{"HOME": "/dev/null"}, nil, map[string]string{}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := cliWith(c.env).buildArgs(c.flags)
			if err != nil || !maps.Equal(got, c.want) {
				t.Errorf("got %v, %v, want %v", got, err, c.want)
			}
		})
	}
	_, err := cliWith(nil).buildArgs([]string{"=x"})
	wantUsage(t, err, "--build-arg =x")
}

func TestTheWorkingDirectoryIsNoHome(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, ".docker/config.json"), `{"proxies":{"default":{"httpProxy":"http://evil"}}}`)
	t.Chdir(dir)
	if got, err := cliWith(nil).proxies(); err != nil || len(got) != 0 {
		t.Errorf("got %v, %v, want nothing without HOME", got, err)
	}
}

func TestADamagedDockerConfigIsNamed(t *testing.T) {
	dir := t.TempDir()
	name := write(t, filepath.Join(dir, "config.json"), "{")
	if _, err := cliWith(map[string]string{"DOCKER_CONFIG": dir}).proxies(); err == nil || !strings.Contains(err.Error(), name) {
		t.Errorf("got %v, want an error with %s", err, name)
	}
}

func TestSecretsAreReadAsDockerDoes(t *testing.T) {
	dir := t.TempDir()
	file := write(t, filepath.Join(dir, "token.txt"), "from file\n")
	write(t, filepath.Join(dir, "onlyfile"), "by its name")
	env := map[string]string{"TOKEN": "from env", "byname": "named"}
	t.Chdir(dir)
	for value, want := range map[string]string{
		"id=a,src=" + file: "a:from file\n", "id=a,source=" + file: "a:from file\n", "id=a,type=file,src=token.txt": "a:from file\n",
		"id=a,env=TOKEN": "a:from env", "id=a,type=env,src=TOKEN": "a:from env", "id=byname": "byname:named", "id=byname,type=env": "byname:named",
		"id=onlyfile": "onlyfile:by its name", "ID=a,SRC=token.txt": "a:from file\n",
	} {
		got, err := parseSecrets([]string{value}, func(k string) (string, bool) { v, ok := env[k]; return v, ok })
		id, data, _ := strings.Cut(want, ":")
		if err != nil || len(got) != 1 || string(got[id]) != data {
			t.Errorf("--secret %s: got %q, %v, want %q", value, got, err, want)
		}
	}
	write(t, filepath.Join(dir, "big"), strings.Repeat("x", maxSecretBytes+1))
	for value, want := range map[string]string{
		"src=x": "no id", "id=": "no id", "id=a,env=UNSET": "UNSET is not set", "id=a,src=none": "no such file", "id=a,kind=x": `unknown field "kind"`,
		"id=a,type=pipe": `unknown type "pipe"`, "a": "has no value", "id=a,src=big": "is larger than 512000 bytes", "id=a,src=/dev/zero": "is larger than 512000 bytes", "": "has no value",
	} {
		_, err := parseSecrets([]string{value}, func(k string) (string, bool) { v, ok := env[k]; return v, ok })
		wantUsage(t, err, want)
	}
}

func TestHostsUlimitsSizesAndLabels(t *testing.T) {
	hosts, err := parseHosts([]string{"db:10.0.0.5", "v6:::1", "b=[fe80::1]", "c=1.2.3.4"})
	if want := []worker.Host{{Name: "db", Addr: "10.0.0.5"}, {Name: "v6", Addr: "::1"}, {Name: "b", Addr: "fe80::1"}, {Name: "c", Addr: "1.2.3.4"}}; err != nil || !reflect.DeepEqual(hosts, want) {
		t.Errorf("hosts: got %v, %v, want %v", hosts, err, want)
	}
	for _, bad := range []string{"db", "db:", ":1.2.3.4", "db:host", "db:1.2.3", ""} {
		_, err := parseHosts([]string{bad})
		wantUsage(t, err, "--add-host "+bad)
	}
	limits, err := parseUlimits([]string{"nofile=1024:2048", "nproc=5", "core=-1"})
	if want := []plan.Ulimit{{Name: "nofile", Soft: 1024, Hard: 2048}, {Name: "nproc", Soft: 5, Hard: 5}, {Name: "core", Soft: -1, Hard: -1}}; err != nil || !reflect.DeepEqual(limits, want) {
		t.Errorf("ulimits: got %v, %v, want %v", limits, err, want)
	}
	for _, bad := range []string{"nofile", "bogus=1", "nofile=2:1", "nofile=x"} {
		_, err := parseUlimits([]string{bad})
		wantUsage(t, err, "--ulimit "+bad)
	}
	for value, want := range map[string]int64{"": 0, "64m": 64 << 20, "1g": 1 << 30, "1024": 1024} {
		if got, err := parseBytes("--shm-size", value); got != want || err != nil {
			t.Errorf("size %q: got %d, %v, want %d", value, got, err, want)
		}
	}
	for _, bad := range []string{"0", "-1", "lots", "1x"} {
		_, err := parseBytes("--shm-size", bad)
		wantUsage(t, err, "--shm-size "+bad)
	}
	labels, err := parseLabels([]string{"a=1=2", "b=", "c"})
	if want := map[string]string{"a": "1=2", "b": "", "c": ""}; err != nil || !maps.Equal(labels, want) {
		t.Errorf("labels: got %v, %v, want %v", labels, err, want)
	}
	_, err = parseLabels([]string{"=x"})
	wantUsage(t, err, "--label =x")
}

func TestARequestIsReadFromFlags(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "Dockerfile"), "FROM scratch\n")
	ok := func(change func(f *buildFlags)) (*buildFlags, string) {
		f := &buildFlags{network: "default"}
		change(f)
		return f, dir
	}
	f, arg := ok(func(f *buildFlags) {
		f.target, f.network, f.allow, f.shmSize, f.ulimits, f.labels = "t", "none", []string{"network.host"}, "1m", []string{"nofile=1"}, []string{"a=b"}
	})
	r, cleanup, err := cliWith(nil).request(t.Context(), f, arg)
	if err != nil || cleanup() != nil {
		t.Fatal(err)
	}
	want := engine.Request{
		Dockerfile: []byte("FROM scratch\n"), Name: r.Name, Context: engine.Context{Dir: dir, Dockerfile: filepath.Join(dir, "Dockerfile")},
		Target: "t", Network: "none", AllowHostNetwork: true, ShmBytes: 1 << 20, Ulimits: []plan.Ulimit{{Name: "nofile", Soft: 1, Hard: 1}},
		Labels: map[string]string{"a": "b"}, BuildArgs: map[string]string{},
	}
	if !reflect.DeepEqual(r, want) || !strings.HasSuffix(r.Name, "Dockerfile") {
		t.Errorf("got  %+v\nwant %+v", r, want)
	}
	for message, change := range map[string]func(f *buildFlags){
		"--network bridge": func(f *buildFlags) { f.network = "bridge" },
		"--allow x":        func(f *buildFlags) { f.allow = []string{"x"} },
		"--platform":       func(f *buildFlags) { f.platform = "linux/s390x" },
		"nowhere":          func(f *buildFlags) { f.file = "nowhere" },
	} {
		f, arg := ok(change)
		_, _, err := cliWith(nil).request(t.Context(), f, arg)
		wantUsage(t, err, message)
	}
	for arg, message := range map[string]string{
		filepath.Join(dir, "none"): "build context", filepath.Join(dir, "Dockerfile"): "is not a directory", "https://example.org/x.git": "is not supported yet",
	} {
		_, _, err := cliWith(nil).request(t.Context(), &buildFlags{network: "default"}, arg)
		wantUsage(t, err, message)
	}
	_, _, err = cliWith(nil).request(t.Context(), &buildFlags{network: "default", file: "-"}, "-")
	wantUsage(t, err, "both read standard input")
}

func TestStandardInputIsADockerfileOrAContext(t *testing.T) {
	dir := t.TempDir()
	c := cliWith(nil)
	c.stdin = strings.NewReader("FROM a\n")
	r, _, err := c.request(t.Context(), &buildFlags{network: "default", file: "-"}, dir)
	if err != nil || string(r.Dockerfile) != "FROM a\n" || r.Context.Dir != dir || r.Context.Dockerfile != "" {
		t.Errorf("-f -: got %+v, %v, want the text and the directory", r, err)
	}
	c.stdin = strings.NewReader("FROM b\n")
	r, cleanup, err := c.request(t.Context(), &buildFlags{network: "default"}, "-")
	if err != nil || string(r.Dockerfile) != "FROM b\n" {
		t.Fatalf("-: got %+v, %v, want the text", r, err)
	}
	if list, err := os.ReadDir(r.Context.Dir); err != nil || len(list) != 0 {
		t.Errorf("-: got a context of %v, %v, want an empty one", list, err)
	}
	if err := cleanup(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(r.Context.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want the context gone", err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, data := range map[string]string{"Dockerfile": "FROM c\n", "file": "x"} {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(data))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(data)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	c.stdin = &b
	r, cleanup, err = c.request(t.Context(), &buildFlags{network: "default"}, "-")
	if err != nil || string(r.Dockerfile) != "FROM c\n" {
		t.Fatalf("a tar: got %+v, %v, want its Dockerfile", r, err)
	}
	if data, err := os.ReadFile(filepath.Join(r.Context.Dir, "file")); err != nil || string(data) != "x" {
		t.Errorf("a tar: got %q, %v, want its file", data, err)
	}
	if err := cleanup(); err != nil {
		t.Error(err)
	}
}

func TestAHugeDockerfileIsRefused(t *testing.T) {
	_, err := readDockerfile(strings.NewReader(strings.Repeat("#", 16<<20+1)))
	wantUsage(t, err, "larger than 16777216 bytes")
	if b, err := readDockerfile(strings.NewReader(strings.Repeat("#", 16<<20))); err != nil || len(b) != 16<<20 {
		t.Errorf("got %d bytes, %v, want 16 MiB accepted", len(b), err)
	}
}

func TestADeviceIsAnOutputWhoeverOwnsItsDirectory(t *testing.T) {
	for _, dest := range []string{os.DevNull, filepath.Join(t.TempDir(), "new", "file")} {
		if err := checkWritable(dest); err != nil {
			t.Errorf("%s: got %v, want it accepted", dest, err)
		}
	}
}

func TestACABundleIsARegularFile(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{dir, fifo, os.DevNull} {
		_, err := readable(name)
		wantUsage(t, err, "not a regular file")
	}
}
