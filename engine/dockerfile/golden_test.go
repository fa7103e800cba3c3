package dockerfile

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite testdata/*.golden")

// broken are Dockerfiles and what the golden file of that name says about them.
var broken = map[string]string{
	"unknown-instruction":    "FROM scratch\nCOPPY a b\n",
	"unknown-like-nothing":   "FROM scratch\nRUN apt-get update\n  && apt-get install x\n",
	"unknown-flag":           "FROM scratch\nCOPY --chown=1 \\\n  --form=x a b\n",
	"unknown-flag-no-flags":  "FROM scratch\nWORKDIR --x /a\n",
	"duplicate-flag":         "FROM scratch\nCOPY --from=a --from=b a b\n",
	"flag-without-value":     "FROM scratch\nCOPY --from a b\n",
	"flag-not-boolean":       "FROM scratch\nCOPY --link=maybe a b\n",
	"flag-on-arg":            "FROM scratch\nARG --x A=1\n",
	"network-mode":           "FROM scratch\nRUN --network=hots true\n",
	"security-mode":          "FROM scratch\nRUN --security=\"off\" true\n",
	"stage-name":             "FROM scratch AS 1st\n",
	"from-arguments":         "FROM a b\n",
	"copy-one-argument":      "FROM scratch\n\tCOPY a\n",
	"copy-to-heredoc":        "FROM scratch\nCOPY a <<E\nE\n",
	"env-without-value":      "FROM scratch\nENV A\n",
	"env-without-equals":     "FROM scratch\nENV A=1 B\n",
	"label-without-equals":   "FROM scratch\nLABEL a=b c d\n",
	"json-of-numbers":        "FROM scratch\nCMD [1, 2]\n",
	"shell-not-json":         "FROM scratch\nSHELL /bin/sh -c\n",
	"healthcheck-type":       "FROM scratch\nHEALTHCHECK CDM x\n",
	"healthcheck-retries":    "FROM scratch\nHEALTHCHECK --retries=x CMD y\n",
	"healthcheck-interval":   "FROM scratch\nHEALTHCHECK --interval=5 CMD y\n",
	"unterminated-heredoc":   "FROM scratch\nRUN <<EOF\necho\n",
	"onbuild-onbuild":        "FROM scratch\nONBUILD ONBUILD RUN x\n",
	"onbuild-from":           "FROM scratch\nONBUILD FROM x\n",
	"before-from":            "ENV A=1\nFROM scratch\n",
	"no-from":                "ARG A=1\n",
	"empty":                  "",
	"only-comments":          "# nothing\n\n",
	"escape-directive":       "# escape=x\nFROM scratch\n",
	"directive-twice":        "# syntax=a\n# syntax=b\nFROM scratch\n",
	"check-directive":        "# check=skp=all\nFROM scratch\n",
	"check-error":            "# check=error=true\nFROM scratch AS Build\n",
	"mount-csv":              "FROM scratch\nRUN --mount=type=bind,a\\\"b true\n",
	"terminal-control":       "FROM scratch\nRUN\x1b[31m\x07 \u202e x\n",
	"long-line":              "FROM scratch\nRUN " + strings.Repeat("a", 200) + " --x\nCOPY " + strings.Repeat("é", 200) + "\n",
	"wide-text-before-caret": "FROM scratch\nCOPY --chown=ü\t--from=ä --form=b a b\n",
	"crlf":                   "FROM scratch\r\nCOPY --form=a b c\r\n",
	"byte-order-mark":        "\xef\xbb\xbfFORM scratch\n",
	"after-heredoc":          "FROM scratch\nRUN <<E\nCOPPY\nE\nCOPPY\n",
}

func TestErrorsAreRenderedWithPlaceAndHint(t *testing.T) {
	for name, text := range broken {
		t.Run(name, func(t *testing.T) {
			_, err := Parse("Dockerfile", []byte(text))
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("got %v, want an *Error", err)
			}
			if e.Hint == "" {
				t.Errorf("got no hint for %q", e.Message)
			}
			golden(t, name, e.Render()+"\n")
		})
	}
}

// golden compares with testdata/NAME.golden, or writes it with -update.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s\ngot:\n%swant:\n%s", file, got, want)
	}
}
