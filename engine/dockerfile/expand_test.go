package dockerfile

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestExpand(t *testing.T) {
	vars := NewVars("a=1", "empty=", "path=/x/y.txt", "words=p  q")
	cases := map[string]struct {
		text    string
		escape  rune
		want    string
		wantErr string
	}{
		"a variable":                      {text: "$a-${a}", want: "1-1"},
		"an unset variable is nothing":    {text: "<$none>", want: "<>"},
		"quotes go":                       {text: `"$a" '$a'`, want: "1 $a"},
		"an escaped dollar stays":         {text: `\$a`, want: "$a"},
		"the file's escape counts":        {text: "`$a\\", escape: '`', want: "$a\\"},
		"a default for unset or empty":    {text: "${none:-d}${empty:-d}${empty-d}", want: "dd"},
		"an alternative for set":          {text: "${a:+yes}${empty:+yes}${empty+set}", want: "yesset"},
		"a required variable":             {text: "${Need:?must be set}", wantErr: "Need: must be set"},
		"a suffix and a prefix":           {text: "${path%.*}${path##*/}", want: "/x/yy.txt"},
		"a substitution":                  {text: "${path//x/z}", want: "/z/y.tzt"},
		"a brace that is not closed":      {text: "${a", wantErr: "syntax error: missing '}'"},
		"bytes that are not UTF-8":        {text: "$a\xff", wantErr: `"$a\xff" is not UTF-8 text`},
		"more variables than fit a stack": {text: strings.Repeat("${a:-", maxDollars+1), wantErr: "the text has 10001 variables, more than 10000"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := (&File{Escape: c.escape}).Expand(c.text, vars)
			if c.wantErr != "" {
				if err == nil || err.Error() != c.wantErr {
					t.Fatalf("got %q, %v, want the error %q", got, err, c.wantErr)
				}
				return
			}
			if err != nil || got != c.want {
				t.Errorf("got %q, %v, want %q", got, err, c.want)
			}
		})
	}
}

func TestExpandReportNamesUnsetVariables(t *testing.T) {
	got, err := (&File{}).ExpandReport("$z $a ${b:-x} $z", NewVars("a=1"))
	if err != nil || !slices.Equal(got.Unset, []string{"b", "z"}) {
		t.Errorf("got %v, %v, want b and z", got.Unset, err)
	}
}

func TestExpandWordsSplitsAfterExpansion(t *testing.T) {
	got, err := (&File{}).ExpandWords(`$words "$words" r`, NewVars("words=p  q"))
	if want := []string{"p", "q", "p  q", "r"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
}

func TestExpandDataKeepsQuotes(t *testing.T) {
	got, err := (&File{Escape: '`'}).ExpandData("\"$a\" '$a' \\$a `\n", NewVars("a=1"))
	if want := "\"1\" '1' $a `\n"; err != nil || got != want {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
}

func TestExpandTitleLeavesWhatIsNotSet(t *testing.T) {
	if got, want := (&File{}).ExpandTitle(`RUN "$a" \$a ${b}`, NewVars("a=1")), `RUN "1" \$a ${b}`; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestExpansionStopsBeforeItFillsTheMemory(t *testing.T) {
	big := NewVars("a=" + strings.Repeat("a", 1<<20))
	for name, text := range map[string]string{
		"many values":                    strings.Repeat("$a", 100),
		"nested substitutions":           "${a//a/${a//a/${a//a/x}}}",
		"a brace in quotes hides no one": `${a//a/"}"${a//a/xx}}`,
		"an escaped brace neither":       `${a//a/\}${a//a/xx}}`,
		"a brace in single quotes":       `${a//a/'}'${a//a/xx}}`,
		"a name of other letters":        "${é//a/${é//a/xx}}$a",
	} {
		t.Run(name, func(t *testing.T) {
			_, err := (&File{}).Expand(text, big)
			if fmt.Sprint(err) != errExpansionLimit.Error() {
				t.Errorf("got %v, want %v", err, errExpansionLimit)
			}
		})
	}
	if _, err := (&File{}).Expand("${a//a/xx}", NewVars("a="+strings.Repeat("a", 20_000))); err != nil {
		t.Errorf("got %v for one substitution in a short value", err)
	}
}

func TestVarsKeepTheirOrder(t *testing.T) {
	v := NewVars("b=1", "a=2", "b=3", "c")
	c := v.Clone()
	c.Set("d", "4")
	if got := fmt.Sprint(v.Environ(), v.Len(), c.Environ()); got != "[b=3 a=2 c=] 3 [b=3 a=2 c= d=4]" {
		t.Errorf("got %s", got)
	}
	var none *Vars
	if none.Len() != 0 || none.Environ() != nil || none.Clone().Len() != 0 {
		t.Error("a nil Vars is not empty")
	}
}

func TestSuggest(t *testing.T) {
	names := []string{"build", "builder", "test", "Final", "a"}
	for word, want := range map[string]string{
		"biuld": "build", "buil": "build", "BUILDER1": "builder", "tset": "test", "final": "Final",
		"xyz": "", "b": "", "build": "builder", "": "", strings.Repeat("a", 1000): "",
	} {
		if got := Suggest(word, names); got != want {
			t.Errorf("Suggest(%.20q): got %q, want %q", word, got, want)
		}
	}
}
