//go:build !kvtier_mutations

package block

func tenantless() bool { return false }
