package layertar_test

import (
	"testing"

	"github.com/mstage/mstage/storage/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }
