package buildcontext

import (
	"context"
	"runtime"

	"golang.org/x/sync/errgroup"

	"github.com/mstage/mstage/storage/tree"
)

// maxWalkers bounds the goroutines of one walk. More don't help: the kernel's
// directory locks and the memory bus are shared.
const maxWalkers = 8

// Prefetch lists everything below a path in parallel, so that later calls are
// answered from memory. Nothing happens for a path that is not a directory.
func (c *Context) Prefetch(ctx context.Context, path string) error {
	if path != "." {
		n, err := c.lookup("walk", path)
		if err != nil {
			return err
		}
		if n.sub == nil {
			return nil
		}
	}
	d, err := c.directory(path)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(min(max(2, runtime.GOMAXPROCS(0)), maxWalkers))
	w := walker{c: c, ctx: ctx, group: g}
	g.Go(func() error { return w.walk(d) })
	return g.Wait()
}

// walker is one Prefetch under way.
type walker struct {
	c     *Context
	ctx   context.Context // of the one call that made the walker
	group *errgroup.Group
}

// walk lists d and what is below it; a free goroutine takes a subdirectory over.
func (w walker) walk(d *dir) error {
	if w.ctx.Err() != nil {
		return context.Cause(w.ctx)
	}
	nodes, err := d.list(w.c)
	if err != nil {
		if d.state.ignored {
			return nil // asked again, and answered, if anything needs it
		}
		return err
	}
	for i := range nodes {
		sub := nodes[i].sub
		if sub == nil || w.group.TryGo(func() error { return w.walk(sub) }) {
			continue
		}
		if err := w.walk(sub); err != nil {
			return err
		}
	}
	return nil
}

// Walk calls fn for a path and everything below it, a directory before what it
// holds, siblings in byte order of their names. It lists in parallel first; fn
// is called from one goroutine. An error of fn ends the walk and is returned.
func (c *Context) Walk(ctx context.Context, path string, fn func(tree.Entry) error) error {
	top, err := c.Lstat(path)
	if err != nil {
		return err
	}
	if err := c.Prefetch(ctx, path); err != nil {
		return err
	}
	if err := fn(top); err != nil || !top.IsDir() {
		return err
	}
	d, err := c.directory(path)
	if err != nil {
		return err
	}
	return c.visit(ctx, d, fn)
}

// visit calls fn for everything below d.
func (c *Context) visit(ctx context.Context, d *dir, fn func(tree.Entry) error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	nodes, err := d.list(c)
	if err != nil {
		return err
	}
	for i := range nodes {
		n := &nodes[i]
		ok, err := n.visible(c)
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		if err := fn(n.entry); err != nil {
			return err
		}
		if n.sub == nil {
			continue
		}
		if err := c.visit(ctx, n.sub, fn); err != nil {
			return err
		}
	}
	return nil
}
