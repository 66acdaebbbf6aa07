"""The generative model beside its guide, and the likelihoods."""
