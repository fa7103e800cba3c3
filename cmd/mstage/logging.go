package main

import (
	"io"

	"github.com/sirupsen/logrus"
)

// setLogging sends what libraries log to w: warnings, or with debug everything.
func setLogging(w io.Writer, debug bool) {
	logrus.SetOutput(w)
	logrus.SetFormatter(&logrus.TextFormatter{DisableTimestamp: true, DisableColors: true})
	logrus.SetLevel(logrus.WarnLevel)
	if debug {
		logrus.SetLevel(logrus.DebugLevel)
	}
}
