// Command embedder builds the Dockerfile in a directory with the engine: a
// program of somebody else, as short as it gets.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/mstage/mstage"
	"github.com/mstage/mstage/engine"
)

func main() {
	mstage.Init()
	root, dir, name := os.Args[1], os.Args[2], os.Args[3]
	text, err := os.ReadFile(filepath.Join(dir, "Dockerfile"))
	check(err)
	eng, err := mstage.New(mstage.Options{Root: root})
	check(err)
	res, err := eng.Build(context.Background(), engine.Request{
		Dockerfile: text, Name: "Dockerfile", Context: engine.Context{Dir: dir}, Names: []string{name},
	})
	check(err)
	fmt.Println(res.Image.ID)
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
