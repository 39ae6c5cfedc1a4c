module github.com/kvtier/kvtier

go 1.26.0
