package main

import (
	"testing"
	"time"
)

func TestSizesHaveThreeDigitsAndDecimalUnits(t *testing.T) {
	for bytes, want := range map[int64]string{
		0: "0B", 1: "1B", 999: "999B", 1000: "1kB", 1234: "1.23kB", 4261550: "4.26MB", 132_900_000: "133MB",
		999_499: "999kB", 999_500: "1MB", 1_130_000_000: "1.13GB", 1 << 62: "4.61EB",
	} {
		if got := humanSize(bytes); got != want {
			t.Errorf("%d bytes: got %q, want %q", bytes, got, want)
		}
	}
}

func TestAgesAreAsDockerShowsThem(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for age, want := range map[time.Duration]string{
		-time.Hour: "Less than a second ago", 0: "Less than a second ago", time.Second: "1 second ago",
		59 * time.Second: "59 seconds ago", 90 * time.Second: "About a minute ago", 59 * time.Minute: "59 minutes ago",
		90 * time.Minute: "About an hour ago", 47 * time.Hour: "47 hours ago", 48 * time.Hour: "2 days ago",
		13 * day: "13 days ago", 14 * day: "2 weeks ago", 59 * day: "8 weeks ago", 60 * day: "2 months ago",
		729 * day: "24 months ago", 730 * day: "2 years ago",
	} {
		if got := humanAge(now, now.Add(-age)); got != want {
			t.Errorf("age %v: got %q, want %q", age, got, want)
		}
	}
	if got := humanAge(now, time.Time{}); got != "N/A" {
		t.Errorf("no time: got %q, want N/A", got)
	}
}
