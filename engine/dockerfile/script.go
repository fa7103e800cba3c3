package dockerfile

import (
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/parser"
)

// InlineDir is where the file of a RUN that consists of one here-document with a
// "#!" line is shown to the command, mode 0755.
const InlineDir = "/dev/pipes"

// Script returns what the shell of a shell form is given, here-documents
// included, and the file that has to be shown in InlineDir for it, nil for
// none. A command that is nothing but a here-document is that document's text,
// or a file that is run when it begins with "#!"; in every other command the
// shell reads the here-documents itself. Shell must be true.
// Source: docker/dockerfile reference, "Here-Documents".
func (c CommandLine) Script() (script string, file *InlineFile) {
	script = c.Args[0]
	if len(c.Files) == 0 {
		return script, nil
	}
	if parser.MustParseHeredoc(script) != nil {
		doc := c.Files[0]
		if doc.Chomp {
			doc.Data = parser.ChompHeredocContent(doc.Data)
		}
		if strings.HasPrefix(doc.Data, "#!") {
			return InlineDir + "/" + doc.Name, &doc
		}
		return doc.Data, nil
	}
	var b strings.Builder
	b.WriteString(script)
	for _, doc := range c.Files {
		b.WriteString("\n" + doc.Data + doc.Name)
	}
	return b.String(), nil
}
