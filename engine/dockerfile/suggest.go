package dockerfile

import "strings"

// maxSuggestRunes is the longest word that suggestions are looked for: the
// distance costs time by the square of the length.
const maxSuggestRunes = 128

// Suggest returns the candidate that word is most likely a misspelling of, ""
// when none is close. Close is a Damerau-Levenshtein distance (swapping two
// neighbours counts once) of at most 2, for words of up to 3 letters 1, any
// case. Of equally close ones the first wins; word itself is never returned.
func Suggest(word string, candidates []string) string {
	w := []rune(strings.ToLower(word))
	if len(w) == 0 || len(w) > maxSuggestRunes {
		return ""
	}
	limit := 2
	if len(w) <= 3 {
		limit = 1
	}
	best := ""
	for _, candidate := range candidates {
		c := []rune(strings.ToLower(candidate))
		if candidate == word || len(c) == 0 || len(c) > len(w)+limit || len(w) > len(c)+limit {
			continue
		}
		if d := distance(w, c); d <= limit && d < len(c) {
			best, limit = candidate, d-1
		}
	}
	return best
}

// didYouMean is the hint for a suggestion, otherwise when there is none.
func didYouMean(suggestion, otherwise string) string {
	if suggestion == "" {
		return otherwise
	}
	return `did you mean "` + suggestion + `"?`
}

// distance is the number of insertions, deletions, substitutions and swaps of
// neighbours that turn a into b (optimal string alignment).
func distance(a, b []rune) int {
	before, last := make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := range a {
		row := make([]int, len(b)+1)
		row[0] = i + 1
		for j := range b {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			row[j+1] = min(row[j]+1, last[j+1]+1, last[j]+cost)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				row[j+1] = min(row[j+1], before[j-1]+1)
			}
		}
		before, last = last, row
	}
	return last[len(b)]
}
