// Empty: a package with a function that has no body, such as those of zds_link.go, needs an assembly file.
