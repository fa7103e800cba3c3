package runc

import (
	"io"
	"sync"
	"sync/atomic"

	"github.com/sirupsen/logrus"
)

// warningSink is where warnings of libcontainer go. Its logger is logrus's
// global one, so there is one sink for a process.
type warningSink struct {
	once sync.Once
	to   atomic.Pointer[func(string)]
}

var warnings warningSink

// noCgroups is what libcontainer says about each sandbox that fails to start;
// it is true, there are no cgroups.
const noCgroups = "unable to get oom kill count"

func (w *warningSink) set(to func(string)) {
	w.once.Do(func() {
		logrus.SetOutput(io.Discard)
		logrus.AddHook(w)
	})
	if to == nil {
		w.to.Store(nil)
		return
	}
	w.to.Store(&to)
}

// Levels implements logrus.Hook.
func (w *warningSink) Levels() []logrus.Level {
	return []logrus.Level{logrus.PanicLevel, logrus.FatalLevel, logrus.ErrorLevel, logrus.WarnLevel}
}

// Fire implements logrus.Hook.
func (w *warningSink) Fire(e *logrus.Entry) error {
	if to := w.to.Load(); to != nil && e.Message != noCgroups {
		(*to)(e.Message)
	}
	return nil
}
