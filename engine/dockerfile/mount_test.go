package dockerfile

import (
	"errors"
	"fmt"
	"reflect"
	"testing"
)

func TestParseMountHasBuildKitsDefaults(t *testing.T) {
	n := func(v uint64) *uint64 { return &v }
	s := func(v string) *string { return &v }
	cases := map[string]struct {
		text string
		want Mount
	}{
		"bind is the default and read-only":     {"target=/x", Mount{Type: MountBind, Target: "/x", ReadOnly: true}},
		"bind from a stage, writable":           {"type=bind,from=$stage,source=/a,target=b,rw", Mount{Type: MountBind, From: "build", Source: "/a", Target: "b"}},
		"src and dst are other names":           {"src=a,dst=/b", Mount{Type: MountBind, Source: "a", Target: "/b", ReadOnly: true}},
		"a cache's ID is its target":            {"type=cache,target=/c/", Mount{Type: MountCache, Target: "/c/", ID: "/c", Sharing: "shared"}},
		"a cache with everything":               {"type=cache,target=/c,id=i,sharing=locked,mode=0700,uid=1,gid=2,ro", Mount{Type: MountCache, Target: "/c", ID: "i", Sharing: "locked", Mode: n(0o700), UID: n(1), GID: n(2), ReadOnly: true}},
		"tmpfs with a size":                     {"type=tmpfs,target=/t,size=1m", Mount{Type: MountTmpfs, Target: "/t", SizeBytes: 1 << 20}},
		"a secret by ID":                        {"type=secret,id=a/key", Mount{Type: MountSecret, ID: "a/key", Target: "/run/secrets/key", ReadOnly: true}},
		"a secret by target":                    {"type=secret,target=/x/key,required", Mount{Type: MountSecret, ID: "key", Target: "/x/key", ReadOnly: true, Required: true}},
		"a secret by source":                    {"type=secret,source=s", Mount{Type: MountSecret, ID: "s", Source: "s", Target: "/run/secrets/s", ReadOnly: true}},
		"a secret in a variable":                {"type=secret,id=k,env=TOKEN", Mount{Type: MountSecret, ID: "k", Env: s("TOKEN"), ReadOnly: true}},
		"a secret in the variable of its ID":    {"type=secret,id=k,env=", Mount{Type: MountSecret, ID: "k", Env: s("k"), ReadOnly: true}},
		"a secret in a variable and a file":     {"type=secret,id=k,env=T,target=/f", Mount{Type: MountSecret, ID: "k", Env: s("T"), Target: "/f", ReadOnly: true}},
		"ssh has an agent by default":           {"type=ssh", Mount{Type: MountSSH, ID: "default", ReadOnly: true}},
		"a value in quotes":                     {`type=bind,"source=a,b",target=/x`, Mount{Type: MountBind, Source: "a,b", Target: "/x", ReadOnly: true}},
		"variables in every value":              {"type=$type,target=$stage", Mount{Type: MountCache, Target: "build", ID: "build", Sharing: "shared"}},
		"a character of the private use area":   {"target=/\ue000$stage", Mount{Type: MountBind, Target: "/\ue000build", ReadOnly: true}},
		"keys in upper case":                    {"TYPE=tmpfs,Target=/x", Mount{Type: MountTmpfs, Target: "/x"}},
		"the last of two equal keys is the one": {"target=/a,target=/b", Mount{Type: MountBind, Target: "/b", ReadOnly: true}},
	}
	vars := NewVars("stage=build", "type=cache")
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := ParseMount(Word{Text: c.text}, func(s string) (string, error) { return (&File{}).Expand(s, vars) })
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, c.want) {
				t.Errorf("got  %+v\nwant %+v", got, c.want)
			}
		})
	}
}

func TestMountErrorsPointIntoTheValue(t *testing.T) {
	for name, value := range map[string]string{
		"mount-key":            "type=bind,trget=/x",
		"mount-type":           "type=cahce,target=/x",
		"mount-sharing":        "type=cache,target=/x,sharing=lock",
		"mount-key-of-another": "type=bind,size=3,target=/x",
		"mount-no-pair":        "type=bind,target",
		"mount-mode":           "type=cache,target=/x,mode=rwx",
		"mount-size":           "type=tmpfs,target=/x,size=99999999999999999999",
		"mount-secret-nothing": "type=secret",
		"mount-ssh-source":     "type=ssh,source=x",
		"mount-variable":       "from=${none:?say which},target=/x",
	} {
		t.Run(name, func(t *testing.T) {
			f := mustParse(t, "FROM scratch\nRUN --mount="+value+" true\n")
			run := f.Stages[0].Instructions[0].(*Run)
			_, err := ParseMount(run.Mounts[0], func(s string) (string, error) { return f.Expand(s, nil) })
			var e *Error
			if !errors.As(f.Quote(err), &e) {
				t.Fatalf("got %v, want an *Error", err)
			}
			golden(t, name, e.Render()+"\n")
		})
	}
}

func TestMountFromIsFoundWithoutExpandingTheRest(t *testing.T) {
	for text, want := range map[string]string{
		"uid=$x,from=a$b,target=/x": `"a$b" 12`,
		"target=/x":                 `"" 0`,
		"FROM=a":                    `"a" 5`,
		`"target=a,from=b",from=$c`: `"$c" 23`,
	} {
		from, offset, err := MountFrom(Word{Text: text})
		if got := fmt.Sprintf("%q %d", from, offset); err != nil || got != want {
			t.Errorf("%s: got %s, %v, want %s", text, got, err, want)
		}
	}
}

func TestTriggersOfAnImage(t *testing.T) {
	ins, err := ParseTrigger("copy --from=a /b /c", "debian:12")
	if err != nil {
		t.Fatal(err)
	}
	if got := ins.(*Copy); got.From.Text != "a" || got.Keyword != "COPY" || got.Pos.String() != "ONBUILD of debian:12:1:1" {
		t.Errorf("got %+v", got)
	}
	ins, err = ParseTrigger("RUN <<E\nx\nE", "i")
	if err != nil || ins.(*Run).Command.Files[0].Data != "x\n" {
		t.Errorf("got %+v, %v, want the here-document", ins, err)
	}
	for text, want := range map[string]string{
		"FROM x":          "ONBUILD of i:1:1: FROM is not allowed as an ONBUILD trigger",
		"ONBUILD RUN x":   "ONBUILD of i:1:1: ONBUILD is not allowed as an ONBUILD trigger",
		"MAINTAINER x":    "ONBUILD of i:1:1: MAINTAINER is not allowed as an ONBUILD trigger",
		"RUN a\nRUN b":    "ONBUILD of i: a trigger is one instruction, not 2",
		"":                "ONBUILD of i: file with no instructions",
		"RNU a":           "ONBUILD of i:1:1: unknown instruction: RNU",
		"COPY --form=a b": "ONBUILD of i:1:1: COPY requires at least two arguments, but only one was provided. Destination could not be determined",
		"RUN <<E":         "ONBUILD of i:1:1: unterminated heredoc",
	} {
		_, err := ParseTrigger(text, "i")
		if got := fmt.Sprint(err); got != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
}

func TestTriggersOfAFilePointAtTheirLine(t *testing.T) {
	f := mustParse(t, "FROM scratch\nONBUILD \\\n  COPY --form=a b c\nONBUILD RUN <<E\nE\n")
	ins := f.Stages[0].Instructions
	_, err := f.Trigger(ins[0].(*Onbuild))
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("got %v, want an *Error", err)
	}
	golden(t, "trigger-in-file", e.Render()+"\n")
	run, err := f.Trigger(ins[1].(*Onbuild))
	if err != nil || run.Head().Pos.Line != 4 || run.Head().Pos.EndLine != 5 {
		t.Errorf("got %+v, %v, want lines 4 to 5", run, err)
	}
}

func TestScript(t *testing.T) {
	cases := map[string]struct{ text, want, file string }{
		"a plain command":                     {"RUN a b", "a b", ""},
		"one here-document is the script":     {"RUN <<E\na\nb\nE", "a\nb\n", ""},
		"its tabs go with <<-":                {"RUN <<-E\n\ta\n\tE", "a\n", ""},
		"with #! it is a file":                {"RUN <<E\n#!/bin/x\nE", "/dev/pipes/E", "#!/bin/x\n"},
		"a shell reads the others":            {"RUN cat <<E | sh\na\nE", "cat <<E | sh\na\nE", ""},
		"a shell reads more than one as well": {"RUN cat <<A <<-B\n1\nA\n\t2\n\tB", "cat <<A <<-B\n1\nA\n\t2\nB", ""},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got, file := one(t, c.text).(*Run).Command.Script()
			data := ""
			if file != nil {
				data = file.Data
			}
			if got != c.want || data != c.file {
				t.Errorf("got %q with %q, want %q with %q", got, data, c.want, c.file)
			}
		})
	}
}

func TestCreatedBy(t *testing.T) {
	cases := map[string]struct {
		ins  Instruction
		want string
	}{
		"RUN":              {&Run{Command: CommandLine{Args: []string{"/bin/sh", "-c", "echo hi"}}}, "RUN |2 A=1 B= /bin/sh -c echo hi # buildkit"},
		"COPY":             {&Copy{Sources: []string{"a", "b"}, Dest: "/c", Chown: "1:1", Chmod: "755", From: Word{Text: "x"}, Inline: []InlineFile{{Name: "E"}}}, "COPY --chown=1:1 --chmod=755 a b <<E /c # buildkit"},
		"COPY --parents":   {&Copy{Sources: []string{"a"}, Dest: "/c", Parents: true, Link: true}, "COPY --parents a /c # buildkit"},
		"ADD":              {&Copy{Add: true, Sources: []string{"a"}, Dest: "/c"}, "ADD a /c # buildkit"},
		"ARG":              {&Arg{Args: []ArgValue{{Key: "A"}, {Key: "B", Default: new("1")}}}, "ARG A B=1"},
		"ENV":              {&Env{Pairs: []KeyValue{{Key: "A", Value: "1 2"}, {Key: "B"}}}, "ENV A=1 2 B="},
		"LABEL":            {&Label{Pairs: []KeyValue{{Key: "a", Value: "b"}}}, "LABEL a=b"},
		"CMD":              {&Cmd{Command: CommandLine{Args: []string{"/bin/sh", "-c", `a "b"`}}}, `CMD ["/bin/sh" "-c" "a \"b\""]`},
		"ENTRYPOINT reset": {&Entrypoint{}, "ENTRYPOINT []"},
		"HEALTHCHECK":      {&Healthcheck{Test: []string{"CMD", "x"}, Interval: 5e9, Retries: 3}, "HEALTHCHECK {Test:[CMD x] Interval:5s Timeout:0s StartPeriod:0s StartInterval:0s Retries:3}"},
		"WORKDIR":          {&Workdir{Path: "/x"}, "WORKDIR /x"},
		"USER":             {&User{Name: "a"}, "USER a"},
		"EXPOSE":           {&Expose{Ports: []string{"80/tcp", "81/udp"}}, "EXPOSE [80/tcp 81/udp]"},
		"VOLUME":           {&Volume{Paths: []string{"/a", "/b"}}, "VOLUME [/a /b]"},
		"SHELL":            {&Shell{Args: []string{"/bin/bash", "-c"}}, "SHELL [/bin/bash -c]"},
		"STOPSIGNAL":       {&StopSignal{Signal: "9"}, "STOPSIGNAL 9"},
		"MAINTAINER":       {&Maintainer{Name: "a b"}, "MAINTAINER a b"},
		"ONBUILD":          {&Onbuild{Expression: "RUN x"}, ""},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if got := CreatedBy(c.ins, "A=1", "B="); got != c.want {
				t.Errorf("got  %q\nwant %q", got, c.want)
			}
		})
	}
}
