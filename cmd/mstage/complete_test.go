package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestCompletion(t *testing.T) {
	newStore(t)
	dir := t.TempDir()
	text := "FROM scratch AS base\nFROM base AS build\nFROM build\n"
	for _, name := range []string{"Dockerfile", "other"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		text = strings.ReplaceAll(text, "build", "built")
	}
	cases := map[string]struct {
		args []string
		want string
	}{
		"images to remove":         {[]string{"rmi", ""}, "hello:latest localhost/hello:1"},
		"images that begin so":     {[]string{"inspect", "loc"}, "localhost/hello:1"},
		"not the same twice":       {[]string{"save", "hello:latest", ""}, "localhost/hello:1"},
		"one image to tag":         {[]string{"tag", "h"}, "hello:latest"},
		"its new name is free":     {[]string{"tag", "hello", ""}, ""},
		"an image to run":          {[]string{"run", "-i", "h"}, "hello:latest"},
		"its command is not":       {[]string{"run", "hello", "h"}, ""},
		"stages of the context":    {[]string{"build", dir, "--target", ""}, "base build"},
		"stages of another file":   {[]string{"build", "-f", filepath.Join(dir, "other"), "--target", "bu"}, "built"},
		"no stages without a file": {[]string{"plan", "-f", "nowhere", "--target", ""}, ""},
		"formats of save":          {[]string{"save", "--format", ""}, "docker-archive oci-archive oci-dir"},
		"filters of images":        {[]string{"images", "--filter", ""}, "before= dangling=true dangling=false label= reference= since="},
		"commands":                 {[]string{"sa"}, "save"},
		"networks":                 {[]string{"run", "--network", ""}, "default none host"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			stdout, stderr, code := mstageRun(append([]string{"__completeNoDesc"}, c.args...)...)
			var got []string
			for line := range strings.Lines(stdout) {
				if line = strings.TrimSpace(line); !strings.HasPrefix(line, ":") {
					got = append(got, line)
				}
			}
			if code != 0 || strings.Join(got, " ") != c.want {
				t.Errorf("got %q (code %d, %s), want %q", got, code, stderr, c.want)
			}
		})
	}
}

func TestEveryShellHasACompletionScript(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if got := succeed(t, "completion", shell); !strings.Contains(got, "__complete") {
			t.Errorf("%s: got %d bytes that don't ask the program, want a script", shell, len(got))
		}
	}
}
