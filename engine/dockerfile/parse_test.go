package dockerfile

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
)

// mustParse parses text or ends the test.
func mustParse(t *testing.T, text string) *File {
	t.Helper()
	f, err := Parse("Dockerfile", []byte(text))
	if err != nil {
		t.Fatalf("Parse: %v", err)
	}
	return f
}

// one returns the only instruction of the only stage.
func one(t *testing.T, instruction string) Instruction {
	t.Helper()
	f := mustParse(t, "FROM scratch\n"+instruction+"\n")
	if n := len(f.Stages[0].Instructions); n != 1 {
		t.Fatalf("got %d instructions, want 1", n)
	}
	return f.Stages[0].Instructions[0]
}

func TestInstructionsAreConverted(t *testing.T) {
	yes := true
	five := "5"
	cases := map[string]struct {
		text string
		want Instruction
	}{
		"the shell form is one element":            {"RUN a  && b", &Run{Command: CommandLine{Args: []string{"a  && b"}, Shell: true}}},
		"a RUN without a command has an empty one": {"RUN", &Run{Command: CommandLine{Args: []string{""}, Shell: true}}},
		"the exec form keeps its elements":         {`RUN ["a", "b c"]`, &Run{Command: CommandLine{Args: []string{"a", "b c"}}}},
		"flags of RUN are kept": {
			"RUN --network=none --security=insecure --device=x true",
			&Run{Command: CommandLine{Args: []string{"true"}, Shell: true}, Network: "none", Security: "insecure", Devices: []Word{{Text: "x"}}},
		},
		"a here-document of RUN is as written": {
			"RUN <<-EOF\n\ta\n\tEOF",
			&Run{Command: CommandLine{Args: []string{"<<-EOF"}, Shell: true, Files: []InlineFile{{Name: "EOF", Data: "\ta\n", Chomp: true}}}},
		},
		"a here-document of COPY has lost its tabs": {
			"COPY <<-EOF /x\n\ta\n\tEOF",
			&Copy{Dest: "/x", Inline: []InlineFile{{Name: "EOF", Data: "a\n", Expand: true}}},
		},
		"a quoted here-document is not expanded": {
			"COPY <<'EOF' /x\n$a\nEOF",
			&Copy{Dest: "/x", Inline: []InlineFile{{Name: "EOF", Data: "$a\n"}}},
		},
		"flags of COPY are kept": {
			"COPY --from=a --chown=1:2 --chmod=755 --link --parents --exclude=*.o --exclude=y b c /d/",
			&Copy{Sources: []string{"b", "c"}, Dest: "/d/", From: Word{Text: "a"}, Chown: "1:2", Chmod: "755", Link: true, Parents: true, Exclude: []string{"*.o", "y"}},
		},
		"flags of ADD are kept": {
			"ADD --checksum=sha256:x --keep-git-dir --unpack=true u /d",
			&Copy{Add: true, Sources: []string{"u"}, Dest: "/d", Checksum: "sha256:x", KeepGitDir: &yes, Unpack: &yes},
		},
		"ARG without = has no default": {"ARG a b=5", &Arg{Args: []ArgValue{{Key: "a"}, {Key: "b", Default: &five}}}},
		"ENV in its new form":          {`ENV a=1 b="2 3"`, &Env{Pairs: []KeyValue{{Key: "a", Value: "1"}, {Key: "b", Value: `"2 3"`}}}},
		"ENV in its old form":          {"ENV a 1 2", &Env{Pairs: []KeyValue{{Key: "a", Value: "1 2", NoDelim: true}}}},
		"LABEL":                        {"LABEL a=b", &Label{Pairs: []KeyValue{{Key: "a", Value: "b"}}}},
		"WORKDIR takes the whole line": {"WORKDIR /a b", &Workdir{Path: "/a b"}},
		"USER":                         {"USER a:b", &User{Name: "a:b"}},
		"CMD empties with []":          {"CMD []", &Cmd{Command: CommandLine{Args: []string{}}}},
		"ENTRYPOINT resets with []":    {"ENTRYPOINT []", &Entrypoint{}},
		"EXPOSE is sorted":             {"EXPOSE 90 80/udp", &Expose{Ports: []string{"80/udp", "90"}}},
		"VOLUME as JSON":               {`VOLUME ["/a", "/b"]`, &Volume{Paths: []string{"/a", "/b"}}},
		"SHELL":                        {`SHELL ["a", "-c"]`, &Shell{Args: []string{"a", "-c"}}},
		"STOPSIGNAL":                   {"STOPSIGNAL 9", &StopSignal{Signal: "9"}},
		"HEALTHCHECK in shell form":    {"HEALTHCHECK --retries=3 CMD x y", &Healthcheck{Test: []string{"CMD-SHELL", "x y"}, Retries: 3}},
		"HEALTHCHECK NONE":             {"HEALTHCHECK NONE", &Healthcheck{Test: []string{"NONE"}}},
		"ONBUILD keeps the rest":       {"ONBUILD  RUN  a", &Onbuild{Expression: "RUN  a"}},
		"MAINTAINER":                   {"MAINTAINER a <b>", &Maintainer{Name: "a <b>"}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got := one(t, c.text)
			*got.Head() = Header{}
			forgetPlaces(got)
			if !reflect.DeepEqual(got, c.want) {
				t.Errorf("got  %#v\nwant %#v", got, c.want)
			}
		})
	}
}

// forgetPlaces clears the positions of words.
func forgetPlaces(ins Instruction) {
	switch i := ins.(type) {
	case *Copy:
		i.From.Pos = Position{}
	case *Run:
		for n := range i.Devices {
			i.Devices[n].Pos = Position{}
		}
	}
}

func TestTextIsOneLineWithAnUpperCaseKeyword(t *testing.T) {
	cases := map[string]struct{ text, want string }{
		"continued lines are joined":       {"run a \\\n  && b \\\n  # why\n\n  && c", "RUN a   && b   && c"},
		"flags stay":                       {"COPY --from=a --link /b  /c", "COPY --from=a --link /b  /c"},
		"variables stay":                   {"RUN echo $X ${Y:-z}", "RUN echo $X ${Y:-z}"},
		"a here-document is named only":    {"RUN cat <<EOF\nx\nEOF", "RUN cat <<EOF"},
		"a keyword may follow line breaks": {"\\\n  run x", "RUN x"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if got := one(t, c.text).Head().Text; got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestWordsKnowTheirPlace(t *testing.T) {
	f := mustParse(t, "\xef\xbb\xbf# escape=`\r\nARG v=1\r\nFROM --platform=linux/amd64 `\r\n   debian:$v AS Build\r\n"+
		"  COPY --chown=0 `\r\n    --from=\"Build\" /a `\r\n /b\r\n"+
		"RUN --mount=type=bind,from=Build,target=/m --mount=type=tmpfs,target=/t `\r\n  true\r\n"+
		"ONBUILD COPY --from=Build /x /y\r\n")
	st := f.Stages[0]
	if st.Name != "Build" || f.Escape != '`' {
		t.Errorf("got name %q, escape %q", st.Name, f.Escape)
	}
	copied, run := st.Instructions[0].(*Copy), st.Instructions[1].(*Run)
	trigger, err := f.Trigger(st.Instructions[2].(*Onbuild))
	if err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprint(f.GlobalArgs[0].Pos, st.Pos, st.Platform.Pos, st.Base.Pos, copied.Pos, copied.Pos.EndLine, copied.From.Pos,
		run.Mounts[0].Pos, run.Mounts[1].Pos, f.SubPosition(run.Mounts[0], strings.Index(run.Mounts[0].Text, "Build")),
		trigger.Head().Pos, trigger.(*Copy).From.Pos)
	want := "Dockerfile:2:1 Dockerfile:3:1 Dockerfile:3:17 Dockerfile:4:4 Dockerfile:5:3 7 Dockerfile:6:13" +
		" Dockerfile:8:13 Dockerfile:8:52 Dockerfile:8:28 Dockerfile:10:9 Dockerfile:10:21"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if copied.From.Text != "Build" {
		t.Errorf("got --from %q, want Build without its quotes", copied.From.Text)
	}
}

func TestWarningsAreCollected(t *testing.T) {
	f := mustParse(t, "FROM scratch as Build\nRUN a \\\n\n  b\nMAINTAINER x\n# check=skip=MaintainerDeprecated\nMAINTAINER y\n")
	var got []string
	for _, w := range f.Warnings {
		got = append(got, fmt.Sprintf("%d %s", w.Pos.Line, w.Message))
	}
	want := []string{
		"4 empty line after a continued one",
		"1 Stage name 'Build' should be lowercase",
		"1 'as' and 'FROM' keywords' casing do not match",
		"5 Maintainer instruction is deprecated in favor of using label",
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestTheSyntaxDirectiveIsAccepted(t *testing.T) {
	f := mustParse(t, "# syntax=docker/dockerfile:1\n# check=skip=all\nFROM scratch as Build\nMAINTAINER x\n")
	if len(f.Warnings) != 0 {
		t.Errorf("got warnings %v, want none: the check directive skips them", f.Warnings)
	}
}

func TestLimits(t *testing.T) {
	long := strings.Repeat("x", maxLineBytes-len("RUN "))
	cases := map[string]struct{ text, want string }{
		"a line of the largest length is read":           {"FROM scratch\nRUN " + long + "\n", ""},
		"a longer line is refused":                       {"FROM scratch\nRUN " + long + "x\n", "Dockerfile:2: line of 65536 bytes is longer than 65535"},
		"a line without an end too":                      {"FROM scratch\nRUN " + long + "x", "Dockerfile:2: line of 65536 bytes is longer than 65535"},
		"a file is refused for its size":                 {strings.Repeat("#\n", maxSourceBytes/2+1), "Dockerfile: 10485762 bytes is more than a Dockerfile may have (10485760)"},
		"many instructions are refused":                  {strings.Repeat("X\n", maxInstructions+1), "Dockerfile:200001: more instructions than a Dockerfile may have"},
		"an instruction of a megabyte is refused":        {"FROM scratch\nRUN " + strings.Repeat(strings.Repeat("x", 60000)+"\\\n", 20), "Dockerfile:19: instruction is longer than 1 MiB"},
		"deeply nested variables are refused":            {"FROM scratch\nRUN <<E " + strings.Repeat("${a:-", 12000) + "\nE\n", "Dockerfile:2: instruction has more than 10000 variables"},
		"chained ONBUILD does not recurse":               {"FROM scratch\n" + strings.Repeat("ONBUILD ", 8000) + "\n", "Dockerfile:2:1: ONBUILD ONBUILD is not allowed"},
		"many stages are refused":                        {strings.Repeat("FROM scratch\n", maxStages+1), "Dockerfile:1001:1: more than 1000 stages"},
		"bytes that are not UTF-8 are refused":           {"FROM scratch\nRUN \xff\n", "Dockerfile:2:5: byte 0xff is not UTF-8 text"},
		"a NUL is refused":                               {"FROM scratch\nRUN a\x00\n", "Dockerfile:2:6: byte 0x00 is not UTF-8 text"},
		"a comment may hold any byte":                    {"FROM scratch\n# \xff\x00\n", ""},
		"a comment in a here-document may not":           {"FROM scratch\nRUN <<E\n# \xff\nE\n", "Dockerfile:2:1: here-document E holds bytes that are not UTF-8 text"},
		"a replacement character is a character":         {"FROM scratch\nRUN \ufffd\n", ""},
		"a linter directive without a linter is no harm": {"FROM scratch\n# check=error=true\nRUN true\n", ""},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			_, err := Parse("Dockerfile", []byte(c.text))
			if got := fmt.Sprint(err); got != c.want && (err != nil || c.want != "") {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}
