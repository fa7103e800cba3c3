package main

import (
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/mstage/mstage/engine"
	"github.com/mstage/mstage/engine/worker"
)

func TestARunIsReadFromFlags(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	c := cliWith(map[string]string{"FROM_ENV": "e"})
	f := &runFlags{
		stdin: true, env: []string{"A=1", "FROM_ENV", "UNSET", "B="}, dir: "/w", user: "u", network: "none",
		volumes: []string{dir + ":/a", ".:/b:ro", dir + ":/c:rw"}, hosts: []string{"x:1.2.3.4"}, entrypoint: keepEntrypoint,
	}
	r, err := c.runRequest(f, []string{"cmd"})
	if err != nil {
		t.Fatal(err)
	}
	want := engine.RunRequest{
		Args: []string{"cmd"}, Env: []string{"A=1", "FROM_ENV=e", "B="}, Dir: "/w", User: "u", Network: "none", Stdin: true,
		Mounts: []worker.BindMount{{Source: dir, Target: "/a"}, {Source: dir, Target: "/b", ReadOnly: true}, {Source: dir, Target: "/c"}},
		Hosts:  []worker.Host{{Name: "x", Addr: "1.2.3.4"}},
	}
	if !reflect.DeepEqual(r, want) {
		t.Errorf("got  %+v\nwant %+v", r, want)
	}
}

func TestAnEntrypointMayBeEmpty(t *testing.T) {
	for _, c := range []struct {
		args []string
		want []string
	}{{nil, nil}, {[]string{"--entrypoint", ""}, []string{}}, {[]string{"--entrypoint", "/x"}, []string{"/x"}}} {
		cmd := newRunCommand(cliWith(nil))
		if err := cmd.ParseFlags(c.args); err != nil {
			t.Fatal(err)
		}
		f := &runFlags{network: "default"}
		f.entrypoint, _ = cmd.Flags().GetString("entrypoint")
		f.entrypointSet(cmd)
		r, err := cliWith(nil).runRequest(f, nil)
		if err != nil || (r.Entrypoint == nil) != (c.want == nil) || !slices.Equal(r.Entrypoint, c.want) {
			t.Errorf("%q: got %#v, %v, want %#v", c.args, r.Entrypoint, err, c.want)
		}
	}
}

func TestMistakesOfARunAreUsageErrors(t *testing.T) {
	dir := t.TempDir()
	for message, f := range map[string]*runFlags{
		"--network bridge":       {network: "bridge"},
		"--workdir rel":          {network: "none", dir: "rel"},
		"--volume /a:":           {network: "none", volumes: []string{"/a"}},
		"--volume " + dir + ":r": {network: "none", volumes: []string{dir + ":relative"}},
		`"x" is not ro or rw`:    {network: "none", volumes: []string{dir + ":/a:x"}},
		"no such file":           {network: "none", volumes: []string{filepath.Join(dir, "none") + ":/a"}},
		"--volume :/a":           {network: "none", volumes: []string{":/a"}},
		"--add-host x":           {network: "none", hosts: []string{"x"}},
	} {
		_, err := cliWith(nil).runRequest(f, nil)
		wantUsage(t, err, strings.TrimSuffix(message, ":"))
	}
}

func TestAFailureBeforeTheCommandExitsWithDockersCode(t *testing.T) {
	newStore(t)
	for name, args := range map[string][]string{
		"an image that is not there": {"run", "nowhere"}, "an unknown flag": {"run", "--bogus", "hello"}, "a bad flag": {"run", "--network", "x", "hello"},
		"no terminal": {"run", "-t", "hello"},
	} {
		if _, stderr, code := mstageRun(args...); code != ownFailure || stderr == "" {
			t.Errorf("%s: got code %d and %q, want %d and a message", name, code, stderr, ownFailure)
		}
	}
}
