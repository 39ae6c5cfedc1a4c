package main

import (
	"io"
	"unicode"

	"charm.land/lipgloss/v2"
	"charm.land/lipgloss/v2/table"
)

// newTable starts a table with these columns. Cells that begin with a digit are aligned to the right. Lines are characters, not colours, so
// that it reads the same everywhere, NO_COLOR or not.
func newTable(columns ...string) *textTable { return &textTable{columns: columns} }

type textTable struct {
	columns []string
	rows    [][]string
}

func (t *textTable) row(cells ...string) { t.rows = append(t.rows, cells) }

func (t *textTable) print(w io.Writer) error {
	style := func(row, col int) lipgloss.Style {
		s := lipgloss.NewStyle().PaddingRight(2)
		if row >= 0 && row < len(t.rows) && numeric(t.rows[row][col]) || row == table.HeaderRow && len(t.rows) > 0 && numeric(t.rows[0][col]) {
			s = s.Align(lipgloss.Right)
		}
		return s
	}
	out := table.New().Headers(t.columns...).Rows(t.rows...).StyleFunc(style).
		Border(lipgloss.NormalBorder()).BorderTop(false).BorderBottom(false).BorderLeft(false).BorderRight(false).BorderColumn(false)
	_, err := io.WriteString(w, out.String()+"\n")
	return err
}

func numeric(s string) bool { return s != "" && unicode.IsDigit(rune(s[0])) }
