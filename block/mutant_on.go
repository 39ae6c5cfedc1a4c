//go:build kvtier_mutations

package block

import "github.com/kvtier/kvtier/internal/mutation"

func tenantless() bool { return mutation.Is(mutation.Tenantless) }
