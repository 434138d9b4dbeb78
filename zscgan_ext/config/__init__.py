"""Every setting of the package: typed configurations, and reading them from arguments and YAML."""
