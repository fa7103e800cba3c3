package plan

import (
	"slices"
	"testing"
)

func TestEveryStageHasPath(t *testing.T) {
	cases := map[string]struct{ env, want []string }{
		"an image without an environment gets the default":     {nil, []string{"PATH=" + DefaultPath}},
		"an image without PATH gets it last":                   {[]string{"A=1", "XPATH=/x"}, []string{"A=1", "XPATH=/x", "PATH=" + DefaultPath}},
		"an image's own PATH stays":                            {[]string{"PATH=/own", "A=1"}, []string{"PATH=/own", "A=1"}},
		"an empty PATH was set by somebody and stays as it is": {[]string{"PATH="}, []string{"PATH="}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			given := slices.Clone(c.env)
			if got := withPath(c.env); !slices.Equal(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
			if !slices.Equal(c.env, given) {
				t.Errorf("the image's own environment is %q now, want %q", c.env, given)
			}
		})
	}
}
