module github.com/zcstore/zcstore

go 1.26
