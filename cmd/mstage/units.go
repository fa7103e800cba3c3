package main

import (
	"fmt"
	"strconv"
	"time"
)

// sizeUnits are powers of 1000, as docker shows sizes.
var sizeUnits = []string{"B", "kB", "MB", "GB", "TB", "PB", "EB"}

// humanSize returns a size with three significant digits: "0B", "4.26MB", "133MB".
func humanSize(bytes int64) string {
	value, unit := float64(bytes), 0
	// 999.5 would be rounded to 1000 and need the next unit.
	for value >= 999.5 && unit < len(sizeUnits)-1 {
		value /= 1000
		unit++
	}
	return strconv.FormatFloat(roundTo3(value), 'f', -1, 64) + sizeUnits[unit]
}

// roundTo3 rounds a value below 1000 to three significant digits.
func roundTo3(value float64) float64 {
	rounded, err := strconv.ParseFloat(strconv.FormatFloat(value, 'g', 3, 64), 64)
	if err != nil {
		return value
	}
	return rounded
}

// ageSteps say up to which age, exclusive, which unit is used, as docker does.
var ageSteps = []struct {
	below time.Duration
	unit  time.Duration
	one   string // for exactly one unit; "" when that can't be
	many  string
}{
	{time.Minute, time.Second, "1 second", "seconds"},
	{time.Hour, time.Minute, "About a minute", "minutes"},
	{48 * time.Hour, time.Hour, "About an hour", "hours"},
	{14 * day, day, "", "days"},
	{60 * day, 7 * day, "", "weeks"},
	{2 * 365 * day, 30 * day, "", "months"},
}

const day = 24 * time.Hour

// humanAge returns how long ago then was: "3 weeks ago", or "N/A" for the zero
// time. A time in the future is "Less than a second ago".
func humanAge(now, then time.Time) string {
	if then.IsZero() {
		return "N/A"
	}
	return humanDuration(now.Sub(then)) + " ago"
}

func humanDuration(d time.Duration) string {
	if d < time.Second {
		return "Less than a second"
	}
	for _, s := range ageSteps {
		if d < s.below {
			n := int(d / s.unit)
			if n == 1 && s.one != "" {
				return s.one
			}
			return fmt.Sprintf("%d %s", n, s.many)
		}
	}
	return fmt.Sprintf("%d years", int(d/(365*day)))
}

// timestamp returns a time as docker's CreatedAt shows it, or "N/A".
func timestamp(t time.Time) string {
	if t.IsZero() {
		return "N/A"
	}
	return t.Format("2006-01-02 15:04:05 -0700 MST")
}
